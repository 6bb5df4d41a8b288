"""The embeddings folder: page descriptors with what they describe, readable with numpy alone.

A folder holds `embeddings.npy` float32 [p, d], `writers.npy`, `pages.npy`, `page_ids.npy` (numpy
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
from typing import IO

import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.descriptors import check_alike, comparable

FORMAT_VERSION = 1
BOX = ("x0", "y0", "x1", "y1")
_FIXED = ("path", "writer", "page", "split", *BOX)
_ROWS_A_CHECK = 1 << 24  # values looked at in one go when searching for NaN


@dataclass(frozen=True)
class Embeddings:
    """What an embeddings folder holds; every array has one row a page, in the same order."""

    folder: Path
    descriptors: np.ndarray  # float32 [p, d], memory-mapped
    writers: np.ndarray  # str [p], '' = unknown
    pages: np.ndarray  # str [p]
    page_ids: np.ndarray  # str [p], unique
    table: dict[str, np.ndarray]  # manifest.csv: str [p] a column
    meta: dict

    def __len__(self) -> int:
        return len(self.page_ids)

    @property
    def name(self) -> str:
        """Which weights made them (`meta.json: model`), else the folder's name."""
        return str(self.meta.get("model") or self.folder.resolve().name)

    @property
    def made_by(self) -> dict:
        """What embeddings must share to be compared, as far as meta.json tells."""
        recipe = self.meta.get("recipe")
        return {} if recipe is None else comparable(recipe) | {"digests": self.meta["digests"]}

    def column(self, name: str) -> np.ndarray:
        """One column of the manifest, str [p].

        Raises:
          UserError: there is no such column.
        """
        if name not in self.table:
            known = ", ".join(self.table)
            raise UserError(f"{self.folder / 'manifest.csv'} has no column {name!r}, only: {known}")
        return self.table[name]

    def image(self, row: int) -> Path:
        """Where the image of a row should lie (it may have moved since)."""
        return self.folder / self.meta.get("pages_root", "") / str(self.table["path"][row])

    def box(self, row: int) -> tuple[int, int, int, int] | None:
        """The part of the image that the row describes, x0, y0, x1, y1 in pixels; None for all."""
        corners = [str(self.table[name][row]) for name in BOX if name in self.table]
        return tuple(map(int, corners)) if len(corners) == 4 and all(corners) else None


def save_embeddings(
    folder: str | os.PathLike,
    descriptors: np.ndarray | Iterable[np.ndarray],
    pages: Sequence,
    pages_root: str | os.PathLike,
    meta: Mapping,
) -> Path:
    """Writes an embeddings folder; `meta.json` last, so that a killed run never looks whole.

    Args:
      folder: made if missing; other files in it (other models' subfolders) are left alone.
      descriptors: [p, d], one row a page; or blocks of rows, which are held one at a time.
      pages: p rows of a manifest (`saghog_jax.input_pipeline.pages.manifest.Page`).
      pages_root: the folder that the pages' paths start from.
      meta: kept in `meta.json`. `model` (`random`, `pretrained`, `finetuned`) names the embeddings
        in tables, `checkpoint` (a digest of the weights) tells which embeddings may be compared.

    Raises:
      UserError: rows and pages differ in number, no page, a value that is not finite, a page listed
        twice.
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
    whole = {
        "format": FORMAT_VERSION,
        "rows": len(page_ids),
        "dim": dim,
        "pages_root": _relative(pages_root, folder),
        **meta,
    }
    _write_meta(folder, whole)
    return folder


def relabel(folder: str | os.PathLike, pages: Sequence, pages_root: str | os.PathLike) -> bool:
    """Replaces what a folder says of its pages; the descriptors stay as they are.

    Args:
      pages, pages_root: as for `save_embeddings`, the same pages in the same order.

    Returns:
      whether that was another thing than before.

    Raises:
      UserError: other pages; a folder that is none.
    """
    old = load_embeddings(folder)
    if old.page_ids.tolist() != [page.page_id for page in pages]:
        raise UserError(f"{folder} holds other pages: give another --workdir")
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
    """The arrays of labels and the manifest."""
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


def load_embeddings(folder: str | os.PathLike) -> Embeddings:
    """Opens an embeddings folder; the descriptors stay on disk until they are used.

    Raises:
      UserError: the folder is missing or incomplete (says which command makes it); an array that
        is not what the format says (object arrays are refused, never unpickled), rows that do not
        match, no rows, values that are not finite, a page_id twice.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        what = "is incomplete (no meta.json)" if folder.is_dir() else "does not exist"
        raise UserError(
            f"embeddings folder {folder} {what}; make it with: "
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
    found = Embeddings(folder, descriptors, table=table, meta=meta, **texts)
    for i, name in enumerate(texts["page_ids"].tolist()):
        try:
            box = found.box(i)
        except ValueError:
            raise UserError(
                f"{folder / 'manifest.csv'}: row {i + 1}: x0, y0, x1, y1 must be whole numbers"
            ) from None
        named = table["path"][i] + ("#" + ",".join(map(str, box)) if box else "")
        if named != name:
            raise UserError(
                f"{folder / 'manifest.csv'}: row {i + 1} is {str(named)!r}, but page_ids.npy has "
                f"{name!r} there"
            )
    return found


def read_meta(folder: Path) -> dict:
    """The content of meta.json of an embeddings folder.

    Raises:
      UserError: the file is missing, or holds no JSON object.
    """
    return _read_json(folder / "meta.json")


def check_comparable(a: Embeddings, b: Embeddings) -> None:
    """Refuses to mix embeddings that were made in different ways.

    Raises:
      UserError: the widths, recipes or weights differ, as far as both folders name theirs.
    """
    names = str(a.folder), str(b.folder)
    check_alike(a.made_by, b.made_by, names)
    if a.descriptors.shape[1] != b.descriptors.shape[1]:
        raise UserError(
            f"{a.folder} holds descriptors of width {a.descriptors.shape[1]}, {b.folder} of width "
            f"{b.descriptors.shape[1]}: embed both with the same checkpoint"
        )
    digests = a.meta.get("checkpoint"), b.meta.get("checkpoint")
    if all(digests) and digests[0] != digests[1]:
        raise UserError(
            f"{a.folder} was made by checkpoint {digests[0]}, {b.folder} by {digests[1]}: embed "
            "both with the same checkpoint"
        )


def _write_blocks(folder: Path, blocks: Iterable[np.ndarray], page_ids: np.ndarray) -> int:
    """Writes embeddings.npy block by block and returns its width."""
    rows, dim = 0, 0
    with atomic_write(folder / "embeddings.npy", "wb") as file:
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
        raise UserError(f"{folder}: no embeddings in it")
    unique, counts = np.unique(page_ids, return_counts=True)
    if len(unique) != len(page_ids):
        raise UserError(f"{folder}: page {str(unique[counts > 1][0])!r} is listed twice")


def _check(descriptors: np.ndarray, page_ids: np.ndarray, folder: Path) -> None:
    if descriptors.ndim != 2 or len(descriptors) != len(page_ids):
        raise UserError(
            f"{folder}: descriptors {list(descriptors.shape)} for {len(page_ids)} pages"
        )
    if not descriptors.shape[1]:
        raise UserError(f"{folder}: no embeddings in it")
    step = max(1, _ROWS_A_CHECK // descriptors.shape[1])
    for start in range(0, len(descriptors), step):
        bad = ~np.isfinite(descriptors[start : start + step]).all(1)
        if bad.any():
            first = start + int(bad.argmax())
            raise UserError(
                f"{folder}: the descriptor of {str(page_ids[first])!r} (row {first}) holds NaN or "
                "infinity"
            )


def _read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy of plain values ({error})") from None


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


def _write_rows(file: IO, pages: Sequence) -> None:
    extra = sorted({name for page in pages for name in page.extra} - set(_FIXED))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_FIXED, *extra])
    for page in pages:
        box = page.box if page.box is not None else ("",) * 4
        others = [page.extra.get(name, "") for name in extra]
        writer.writerow([page.path, page.writer, page.page, page.split, *box, *others])


def _relative(root: str | os.PathLike, folder: Path) -> str:
    # Relative, so that pages and embeddings may be moved together; on Windows two drives have no
    # relative path between them.
    try:
        return Path(os.path.relpath(Path(root).resolve(), folder.resolve())).as_posix()
    except ValueError:
        return Path(root).resolve().as_posix()
