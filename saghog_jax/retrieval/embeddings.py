"""The embeddings folder: page descriptors and the pages they describe, readable with numpy.

A folder contains `embeddings.npy` float32 [p, d], `writers.npy`, `pages.npy`, `page_ids.npy` (numpy
strings, same order), `manifest.csv` (row i describes embedding i) and `meta.json`, written last: a
folder without it is incomplete. Axis letters: p pages, d width of a descriptor.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import replacing
from saghog_jax.retrieval.descriptors import check_alike, comparable

FORMAT_VERSION = 1
BOX = ("x0", "y0", "x1", "y1")
_FIXED = ("path", "writer", "page", "split", *BOX)
_CHECKED_VALUES = 1 << 24  # values per block in the search for NaN


@dataclass(frozen=True)
class Embeddings:
    """The content of an embeddings folder; every array has one row per page, in one order."""

    folder: Path
    descriptors: Float[np.ndarray, "p d"]  # float32, memory-mapped
    writers: Shaped[np.ndarray, " p"]  # str, '' = unknown
    pages: Shaped[np.ndarray, " p"]  # str
    page_ids: Shaped[np.ndarray, " p"]  # str, unique
    table: dict[str, Shaped[np.ndarray, " p"]]  # the columns of manifest.csv, str
    meta: dict

    def __len__(self) -> int:
        return len(self.page_ids)

    @property
    def name(self) -> str:
        """The model of the descriptors (`meta.json: model`), else the name of the folder."""
        return str(self.meta.get("model") or self.folder.resolve().name)

    @property
    def made_by(self) -> dict:
        """The properties that comparable embeddings share, as far as meta.json contains them."""
        recipe = self.meta.get("recipe")
        return {} if recipe is None else comparable(recipe) | {"digests": self.meta["digests"]}

    def column(self, name: str) -> Shaped[np.ndarray, " p"]:
        """One column of the manifest, str [p].

        Raises:
          UserError: the manifest has no such column.
        """
        if name not in self.table:
            known = ", ".join(self.table)
            raise UserError(f"{self.folder / 'manifest.csv'} has no column {name!r}, only: {known}")
        return self.table[name]

    def image(self, row: int) -> Path:
        """Path of the image of a row; the file may have moved since the embedding."""
        return self.folder / self.meta.get("pages_root", "") / str(self.table["path"][row])

    def box(self, row: int) -> tuple[int, int, int, int] | None:
        """Box of the row in its image, x0, y0, x1, y1 in pixels; None for the whole image."""
        corners = [str(self.table[name][row]) for name in BOX if name in self.table]
        return tuple(map(int, corners)) if len(corners) == 4 and all(corners) else None


def save_embeddings(
    folder: str | os.PathLike,
    descriptors: Float[np.ndarray, "p d"] | Iterable[Float[np.ndarray, "_ d"]],
    pages: Sequence,
    pages_root: str | os.PathLike,
    meta: Mapping,
) -> Path:
    """Writes an embeddings folder; `meta.json` last, so that an interrupted folder is incomplete.

    Args:
      folder: created if missing; other files in it (subfolders of other models) are kept.
      descriptors: [p, d], one row per page; or blocks of rows, of which one is in memory at a time.
      pages: p rows of a manifest (`saghog_jax.input_pipeline.pages.manifest.Page`).
      pages_root: the folder that the paths of the pages are relative to.
      meta: written to `meta.json`. `model` (`random`, `pretrained`, `finetuned`) names the
        embeddings in tables; only embeddings of equal `checkpoint` (a digest of the weights) are
        comparable.

    Raises:
      UserError: the numbers of rows and pages differ, there is no page, a value is not finite, or a
        page is listed twice.
    """
    folder = Path(folder)
    page_ids = np.array([page.page_id for page in pages], dtype=np.str_)
    _check_ids(page_ids, folder)
    if isinstance(descriptors, np.ndarray):
        _check(descriptors, page_ids, folder)
        descriptors = [descriptors]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    dim = _write_blocks(folder, descriptors, page_ids)
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
        with replacing(folder / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
    with replacing(folder / "manifest.csv", "w") as file:
        _write_rows(file, pages)


def _write_meta(folder: Path, meta: Mapping) -> None:
    with replacing(folder / "meta.json", "w") as file:
        json.dump(meta, file, indent=2, ensure_ascii=False)
        file.write("\n")


def load_embeddings(folder: str | os.PathLike) -> Embeddings:
    """Opens an embeddings folder; the descriptors are memory-mapped.

    Raises:
      UserError: the folder is missing or incomplete (the message names the command that makes it);
        an array differs from the format (object arrays are refused, never unpickled); the numbers
        of rows differ or are zero; a value is not finite; a page_id occurs twice.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        problem = "is incomplete (no meta.json)" if folder.is_dir() else "does not exist"
        raise UserError(
            f"embeddings folder {folder} {problem}; make it with: "
            "python -m saghog_jax.main --config=configs/embed.py"
        )
    meta = read_meta(folder)
    if meta.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'meta.json'}: format {meta.get('format')!r}, this version reads "
            f"{FORMAT_VERSION}"
        )
    descriptors = _read_array(folder / "embeddings.npy")
    if descriptors.ndim != 2 or descriptors.dtype != np.float32:
        raise UserError(
            f"{folder / 'embeddings.npy'}: expected float32 [pages, width], found "
            f"{descriptors.dtype} {list(descriptors.shape)}"
        )
    if descriptors.shape[1] != meta.get("dim"):
        raise UserError(
            f"{folder / 'embeddings.npy'}: width {descriptors.shape[1]}, but meta.json says "
            f"{meta.get('dim')}"
        )
    texts = {name: _read_texts(folder / f"{name}.npy") for name in ("writers", "pages", "page_ids")}
    table = _read_table(folder / "manifest.csv")
    counts = {name: len(array) for name, array in texts.items()}
    counts["manifest.csv"] = len(table["path"])
    for name, count in counts.items():
        if count != len(descriptors):
            raise UserError(f"{folder}: {name} has {count} rows, embeddings.npy {len(descriptors)}")
    _check_ids(texts["page_ids"], folder)
    _check(descriptors, texts["page_ids"], folder)
    embeddings = Embeddings(folder, descriptors, table=table, meta=meta, **texts)
    for i, name in enumerate(texts["page_ids"].tolist()):
        try:
            box = embeddings.box(i)
        except ValueError:
            raise UserError(
                f"{folder / 'manifest.csv'}: row {i + 1}: x0, y0, x1, y1 must be whole numbers"
            ) from None
        expected = table["path"][i] + ("#" + ",".join(map(str, box)) if box else "")
        if expected != name:
            raise UserError(
                f"{folder / 'manifest.csv'}: row {i + 1} is {str(expected)!r}, but page_ids.npy "
                f"has {name!r}"
            )
    return embeddings


def read_meta(folder: Path) -> dict:
    """The content of meta.json of an embeddings folder.

    Raises:
      UserError: the file is missing or contains no JSON object.
    """
    return _read_json(folder / "meta.json")


def check_comparable(a: Embeddings, b: Embeddings) -> None:
    """Checks that two folders were embedded alike.

    Raises:
      UserError: the widths, recipes or weights differ, as far as both folders contain them.
    """
    names = str(a.folder), str(b.folder)
    check_alike(a.made_by, b.made_by, names)
    if a.descriptors.shape[1] != b.descriptors.shape[1]:
        raise UserError(
            f"{a.folder} contains descriptors of width {a.descriptors.shape[1]}, {b.folder} of "
            f"width {b.descriptors.shape[1]}: embed both with the same checkpoint"
        )
    digests = a.meta.get("checkpoint"), b.meta.get("checkpoint")
    if all(digests) and digests[0] != digests[1]:
        raise UserError(
            f"{a.folder} was embedded with checkpoint {digests[0]}, {b.folder} with {digests[1]}: "
            "embed both with the same checkpoint"
        )


def _write_blocks(folder: Path, blocks: Iterable[np.ndarray], page_ids: np.ndarray) -> int:
    """Writes embeddings.npy block by block and returns its width."""
    rows, dim = 0, 0
    with replacing(folder / "embeddings.npy", "wb") as file:
        for block in blocks:
            block = np.ascontiguousarray(block, np.float32)
            if not rows:
                dim = block.shape[1]
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(page_ids), dim)}
                np.lib.format.write_array_header_1_0(file, header)
            _check(block, page_ids[rows : rows + len(block)], folder)
            file.write(block.data)
            rows += len(block)
        if rows != len(page_ids):
            raise ValueError(f"{rows} descriptors for {len(page_ids)} pages")
    return dim


def _check_ids(page_ids: np.ndarray, folder: Path) -> None:
    if not len(page_ids):
        raise UserError(f"{folder} contains no embeddings")
    unique, counts = np.unique(page_ids, return_counts=True)
    if len(unique) != len(page_ids):
        raise UserError(f"{folder}: page {str(unique[counts > 1][0])!r} is listed twice")


def _check(descriptors: np.ndarray, page_ids: np.ndarray, folder: Path) -> None:
    if descriptors.ndim != 2 or len(descriptors) != len(page_ids):
        raise UserError(
            f"{folder}: descriptors {list(descriptors.shape)} for {len(page_ids)} pages"
        )
    if not descriptors.shape[1]:
        raise UserError(f"{folder} contains no embeddings")
    step = max(1, _CHECKED_VALUES // descriptors.shape[1])
    for start in range(0, len(descriptors), step):
        invalid = ~np.isfinite(descriptors[start : start + step]).all(1)
        if invalid.any():
            first = start + int(invalid.argmax())
            raise UserError(
                f"{folder}: the descriptor of {str(page_ids[first])!r} (row {first}) contains NaN "
                "or infinity"
            )


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy file of plain values ({error})") from None


def _read_texts(path: Path) -> np.ndarray:
    array = _read_array(path)
    if array.ndim != 1 or array.dtype.kind != "U":
        raise UserError(f"{path}: expected strings [pages], found {array.dtype}")
    return np.array(array)


def _read_json(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected a JSON object")
    return meta


def _read_table(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = {"path", "writer", "page"} - set(header)
        if missing:
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}")
        rows = [row for row in reader if row]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise UserError(f"{path}: row {i + 1} has {len(row)} cells, the header {len(header)}")
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return {name: np.array(cells, np.str_) for name, cells in zip(header, columns, strict=True)}


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
