"""The embeddings folder: page descriptors and the pages they describe, readable with numpy.

A folder contains `embeddings.npy` float32 or float16 [p, d], `writers.npy`, `pages.npy`,
`page_ids.npy` (numpy strings, same order), `manifest.csv` (row i describes embedding i) and
`meta.json`, written last: a folder without it is incomplete. Axis letters: p pages, d width of a
descriptor.
"""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.unicode_forms import composed
from saghog_jax.retrieval.descriptors import check_alike, comparable, refuse_unless
from saghog_jax.runs.older_configs import upgrade_meta

FORMAT_VERSION = 1
# Types of descriptors. Readers convert the rows that they compare to float32.
DTYPES = ("float32", "float16")
BOX = ("x0", "y0", "x1", "y1")
# The column of the identities of pages (`Manifest.digests`); older folders have none.
PAGE_DIGEST = "page_digest"
_CHECKED_VALUES = 1 << 24  # values per block in the search for NaN


@dataclass(frozen=True)
class Embeddings:
    """The content of an embeddings folder; every array has one row per page, in one order."""

    folder: Path
    descriptors: Float[np.ndarray, "p d"]  # one of DTYPES, memory-mapped
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

    @property
    def digests(self) -> list[str]:
        """Identity of each page by its content and box; "" if unknown."""
        return self.table[PAGE_DIGEST].tolist() if PAGE_DIGEST in self.table else [""] * len(self)

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
    if descriptors.ndim != 2 or descriptors.dtype.name not in DTYPES:
        raise UserError(
            f"{folder / 'embeddings.npy'}: expected float32 or float16 [pages, width], found "
            f"{descriptors.dtype} {list(descriptors.shape)}"
        )
    if descriptors.shape[1] != meta.get("dim"):
        raise UserError(
            f"{folder / 'embeddings.npy'}: width {descriptors.shape[1]}, but meta.json says "
            f"{meta.get('dim')}"
        )
    texts = {name: _read_texts(folder / f"{name}.npy") for name in ("writers", "pages", "page_ids")}
    # Folders of older versions may hold labels in several Unicode forms.
    texts |= {name: _composed(texts[name]) for name in ("writers", "pages")}
    table = _read_table(folder / "manifest.csv")
    counts = {name: len(array) for name, array in texts.items()}
    counts["manifest.csv"] = len(table["path"])
    for name, count in counts.items():
        if count != len(descriptors):
            raise UserError(f"{folder}: {name} has {count} rows, embeddings.npy {len(descriptors)}")
    check_ids(texts["page_ids"], folder)
    check_descriptors(descriptors, texts["page_ids"], folder)
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
    path = folder / "meta.json"
    try:
        return upgrade_meta(_read_json(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); embed the pages again") from None


def check_comparable(a: Embeddings, b: Embeddings, force: bool = False) -> None:
    """Checks that two folders were embedded alike.

    Args:
      force: other recipes or weights are a warning instead of an error.

    Raises:
      UserError: the widths, recipes or weights differ, as far as both folders contain them.
    """
    names = str(a.folder), str(b.folder)
    check_alike(a.made_by, b.made_by, names, force)
    if a.descriptors.shape[1] != b.descriptors.shape[1]:
        raise UserError(
            f"{a.folder} contains descriptors of width {a.descriptors.shape[1]}, {b.folder} of "
            f"width {b.descriptors.shape[1]}: embed both with the same checkpoint"
        )
    digests = a.meta.get("checkpoint"), b.meta.get("checkpoint")
    if all(digests) and digests[0] != digests[1]:
        refuse_unless(
            force,
            f"{a.folder} was embedded with checkpoint {digests[0]}, {b.folder} with {digests[1]}",
        )


def check_ids(page_ids: Shaped[np.ndarray, " p"], folder: Path) -> None:
    """Checks that there are pages and that none occurs twice.

    Raises:
      UserError: they are not valid; the message names the folder.
    """
    if not len(page_ids):
        raise UserError(f"{folder} contains no embeddings")
    unique, counts = np.unique(page_ids, return_counts=True)
    if len(unique) != len(page_ids):
        raise UserError(f"{folder}: page {str(unique[counts > 1][0])!r} is listed twice")


def check_descriptors(
    descriptors: Float[np.ndarray, "..."], page_ids: Shaped[np.ndarray, " p"], folder: Path
) -> None:
    """Checks that there is one finite descriptor per page.

    Raises:
      UserError: they are not valid; the message names the folder.
    """
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
    table = {name: np.array(cells, np.str_) for name, cells in zip(header, columns, strict=True)}
    # The path is part of a page's id, which stays as it is.
    labels = {name: _composed(cells) for name, cells in table.items() if name != "path"}
    return table | labels


def _composed(texts: Shaped[np.ndarray, " p"]) -> np.ndarray:
    """The texts in Unicode's form NFC."""
    return np.array([composed(text) for text in texts.tolist()], np.str_)
