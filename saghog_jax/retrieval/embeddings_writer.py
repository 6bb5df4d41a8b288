"""Writes an embeddings folder, see embeddings.py for its format.

Axis letters: p pages, d width of a descriptor.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval import int8_search
from saghog_jax.retrieval.embeddings import (
    BOX,
    DTYPES,
    FORMAT_VERSION,
    check_descriptors,
    check_ids,
    load_embeddings,
)

_FIXED = ("path", "writer", "page", "split", *BOX)


def save_embeddings(
    folder: str | os.PathLike,
    descriptors: Float[np.ndarray, "p d"] | Iterable[Float[np.ndarray, "_ d"]],
    pages: Sequence,
    pages_root: str | os.PathLike,
    meta: Mapping,
    dtype: str = "float32",
) -> Path:
    """Writes an embeddings folder; `meta.json` last, so that an interrupted folder is incomplete.

    At least 5,000 pages of at most 4,096 numbers get an index of 8-bit codes too (int8_search.py).

    Args:
      folder: created if missing; other files in it (subfolders of other models) are kept.
      descriptors: [p, d], one row per page; or blocks of rows, of which one is in memory at a time.
      pages: p rows of a manifest (`saghog_jax.input_pipeline.pages.manifest.Page`).
      pages_root: the folder that the paths of the pages are relative to.
      meta: written to `meta.json`. `model` (`random`, `pretrained`, `finetuned`) names the
        embeddings in tables; only embeddings of equal `checkpoint` (a digest of the weights) are
        comparable.
      dtype: `float32` or `float16`, in which the descriptors are stored.

    Raises:
      ValueError: the dtype is unknown.
      UserError: the numbers of rows and pages differ, there is no page, a value is not finite, or a
        page is listed twice.
    """
    check_choice("dtype", dtype, DTYPES)
    folder = Path(folder)
    page_ids = np.array([page.page_id for page in pages], dtype=np.str_)
    check_ids(page_ids, folder)
    if isinstance(descriptors, np.ndarray):
        check_descriptors(descriptors, page_ids, folder)
        descriptors = [descriptors]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    int8_search.remove(folder / int8_search.FOLDER)
    dim = _write_blocks(folder, descriptors, page_ids, np.dtype(dtype))
    if int8_search.is_useful(len(page_ids), dim):
        written = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        int8_search.write(folder / int8_search.FOLDER, written)
    _write_pages(folder, pages)
    whole_meta = {
        "format": FORMAT_VERSION,
        "rows": len(page_ids),
        "dim": dim,
        "pages_root": _relative(pages_root, folder),
        **meta,
    }
    _write_meta(folder, whole_meta)
    return folder


def relabel(folder: str | os.PathLike, pages: Sequence, pages_root: str | os.PathLike) -> bool:
    """Replaces labels and paths of the pages of a folder; the descriptors stay.

    Args:
      folder: an embeddings folder.
      pages, pages_root: as for `save_embeddings`, the same pages in the same order.

    Returns:
      whether anything changed.

    Raises:
      UserError: the folder has other pages, or is not a complete embeddings folder.
    """
    old = load_embeddings(folder)
    if old.page_ids.tolist() != [page.page_id for page in pages]:
        raise UserError(f"{folder} contains other pages: give another --workdir")
    text = io.StringIO()
    _write_rows(text, pages)
    root = _relative(pages_root, old.folder)
    before = (old.folder / "manifest.csv").read_bytes().decode()
    if (text.getvalue(), root) == (before, old.meta.get("pages_root")):
        return False
    (old.folder / "meta.json").unlink()
    _write_pages(old.folder, pages)
    _write_meta(old.folder, old.meta | {"pages_root": root})
    return True


def _write_pages(folder: Path, pages: Sequence) -> None:
    """Writes the arrays of labels and the manifest."""
    arrays = {
        "writers": np.array([page.writer for page in pages], dtype=np.str_),
        "pages": np.array([page.page for page in pages], dtype=np.str_),
        "page_ids": np.array([page.page_id for page in pages], dtype=np.str_),
    }
    for name, array in arrays.items():
        with atomic_write(folder / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
    with atomic_write(folder / "manifest.csv", "w") as file:
        _write_rows(file, pages)


def _write_meta(folder: Path, meta: Mapping) -> None:
    with atomic_write(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _write_blocks(
    folder: Path, blocks: Iterable[np.ndarray], page_ids: np.ndarray, dtype: np.dtype
) -> int:
    """Writes embeddings.npy block by block and returns its width."""
    rows, dim = 0, 0
    with atomic_write(folder / "embeddings.npy", "wb") as file:
        for block in blocks:
            block = np.ascontiguousarray(block, dtype)
            if not rows:
                dim = block.shape[1]
                header = {
                    "descr": dtype.newbyteorder("<").str,
                    "fortran_order": False,
                    "shape": (len(page_ids), dim),
                }
                np.lib.format.write_array_header_1_0(file, header)
            check_descriptors(block, page_ids[rows : rows + len(block)], folder)
            file.write(block.data)
            rows += len(block)
        if rows != len(page_ids):
            raise ValueError(f"{rows} descriptors for {len(page_ids)} pages")
    return dim


def _write_rows(file: io.TextIOBase, pages: Sequence) -> None:
    extra = sorted({name for page in pages for name in page.extra} - set(_FIXED))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_FIXED, *extra])
    for page in pages:
        box = page.box if page.box is not None else ("",) * 4
        others = [page.extra.get(name, "") for name in extra]
        writer.writerow([page.path, page.writer, page.page, page.split, *box, *others])


def _relative(root: str | os.PathLike, folder: Path) -> str:
    # Relative, so that pages and embeddings can be moved together; on Windows there is no relative
    # path between two drives.
    try:
        return Path(os.path.relpath(Path(root).resolve(), folder.resolve())).as_posix()
    except ValueError:
        return Path(root).resolve().as_posix()
