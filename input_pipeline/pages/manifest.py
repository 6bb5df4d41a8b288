"""The table of pages, and its form as a CSV.

The CSV has a header with at least the column `path` (relative to the CSV's folder), which may also
have the published code's name `imgs`. The columns `writer`, `page` and `split` are labels. The
columns `x0,y0,x1,y1` are a box in pixels: the page is only this part of the image. The column
`scale` is a factor that the page is resized by. The column `polarity` says whether the writing is
dark on light ground or light on dark ground (`POLARITIES`; empty: `data.polarity`). All other
columns are kept. Capitals in the names of these columns do not matter. `csv_files` describes
encodings and separators.

Labels and names of columns are in Unicode's form NFC; a path has the form that it has on disk.
"""

import csv
import hashlib
import json
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.csv_files import read_table
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages import frames, reading
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints
from saghog_jax.input_pipeline.unicode_forms import FormFinder, composed

LABELS = ("writer", "page", "split")
BOX = ("x0", "y0", "x1", "y1")
# Columns with a meaning, for all spellings with capitals.
_KNOWN_COLUMNS = ("path", "imgs", *LABELS, *BOX, "scale", "polarity")
# Cells that R, pandas and spreadsheets write for an empty cell.
MISSING = ("NA", "N/A", "#N/A", "<NA>", "#NV", "NaN", "nan", "NULL", "null", "None")
# Values of the column `polarity`: found by the program, dark writing on light ground, or light
# writing on dark ground.
AUTO, DARK_ON_LIGHT, LIGHT_ON_DARK = "auto", "dark_on_light", "light_on_dark"
POLARITIES = (AUTO, DARK_ON_LIGHT, LIGHT_ON_DARK)
# Hexadecimal digits of the content of a file, and of `Manifest.digests`.
_SHA256_DIGITS, _PAGE_DIGITS = 64, 16


class Page(NamedTuple):
    """One page: an image file, or a box in an image.

    path: relative to the manifest's root, with forward slashes; may end as `frames` describes.
    writer, page, split: labels, empty if unknown.
    box: x0, y0, x1, y1 in pixels, the last two exclusive; None for the whole image.
    extra: further columns, as text; the properties `scale` and `polarity` read their columns.
    """

    path: str
    writer: str
    page: str
    split: str
    box: tuple[int, int, int, int] | None
    extra: dict[str, str]

    @property
    def scale(self) -> float:
        """Factor the page is resized by, besides the store's scale; 1 if the cell is empty."""
        return float(self.extra.get("scale") or 1)

    @property
    def polarity(self) -> str:
        """One of `POLARITIES`; `auto` if the cell is empty."""
        return self.extra.get("polarity", "").strip() or AUTO

    @property
    def page_id(self) -> str:
        """Unique identifier: the path, plus the box if the page has one."""
        if self.box is None:
            return self.path
        return f"{self.path}#{','.join(map(str, self.box))}"


@dataclass(frozen=True)
class Manifest:
    """Pages in a fixed order.

    root: folder that the paths are relative to.
    columns: names of the further columns, in order.
    contents_cache: JSON file in which `contents` remembers hashes between runs; None: nowhere.
    namesakes: file names without suffix (`bare_name`) that several images of the source have, also
      images of other splits.
    """

    root: Path
    pages: tuple[Page, ...]
    columns: tuple[str, ...]
    contents_cache: Path | None = field(default=None, compare=False)
    namesakes: frozenset[str] = field(default=frozenset(), compare=False)
    # SHA-256 by path. Shared by the manifests that `select`, `at_scales` and `replace` derive.
    _contents: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def writers(self) -> list[str]:
        """Known writers, sorted; without the empty writer."""
        return sorted({page.writer for page in self.pages} - {""})

    def contents(self) -> dict[str, str]:
        """SHA-256 of each page file by `Page.path`, "" if the file cannot be read.

        The mark of `reading` follows, and for one image of a file of several, and for a turned
        image, the ending of the path. Each file is read at most once per manifest and the manifests
        derived from it.
        """
        new = {page.path for page in self.pages} - self._contents.keys()
        if new:
            files = {path: frames.parse(path).file for path in new}
            read = fingerprints(self.root, files.values(), self.contents_cache)
            for path, file in files.items():
                mark = reading.mark(self.root / file) + frames.ending(path)
                self._contents[path] = read[file] and read[file] + mark
        return {page.path: self._contents[page.path] for page in self.pages}

    def digests(self) -> list[str]:
        """Identity of each page, whatever its name is: 16 hexadecimal digits, "" if unreadable.

        They are of a SHA-256 over the bytes of the file, the ending of the path (one image of a
        file of several, a turned image) and the box.
        """
        contents = self.contents()
        digests = []
        for page in self.pages:
            # Without the mark of `reading`: another version of the program reads the same page.
            content = contents[page.path][:_SHA256_DIGITS]
            text = json.dumps([content, frames.ending(page.path), page.box])
            digest = hashlib.sha256(text.encode()).hexdigest()[:_PAGE_DIGITS]
            digests.append(digest if content else "")
        return digests

    def select(self, split: str) -> "Manifest":
        """The pages of a split; all pages if `split` is empty or no page has a split.

        Raises:
          UserError: no page has this split.
        """
        split = composed(split)
        known = sorted({page.split for page in self.pages} - {""})
        if not split or not known:
            return self
        if split not in known:
            raise UserError(f"no page has the split {split!r}, known: {', '.join(known)}")
        return replace(self, pages=tuple(page for page in self.pages if page.split == split))

    def at_scales(self, scales: Sequence[float]) -> "Manifest":
        """Repeats each page for each factor in turn; the factor multiplies the page's scale."""
        if tuple(scales) == (1.0,):
            return self
        views = tuple(
            page._replace(extra=page.extra | {"scale": repr(page.scale * scale)})
            for page in self.pages
            for scale in scales
        )
        return replace(self, pages=views)

    def with_polarity(self, polarity: str) -> "Manifest":
        """Gives pages whose cell `polarity` is empty this polarity; `auto` changes nothing."""
        if polarity == AUTO:
            return self
        pages = tuple(
            page._replace(
                extra=page.extra | {"polarity": page.extra.get("polarity", "").strip() or polarity}
            )
            for page in self.pages
        )
        columns = self.columns if "polarity" in self.columns else (*self.columns, "polarity")
        return replace(self, pages=pages, columns=columns)

    def write(self, csv_path: Path) -> None:
        """Writes the table as a CSV. Paths stay relative to `root`."""
        boxed = any(page.box for page in self.pages)
        header = ["path", *LABELS, *(BOX if boxed else ()), *self.columns]
        with open(csv_path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for page in self.pages:
                box = (page.box or ("",) * 4) if boxed else ()
                extra = (page.extra[name] for name in self.columns)
                table.writerow([page.path, page.writer, page.page, page.split, *box, *extra])


def read_csv(path: Path, root: Path | None = None) -> Manifest:
    """Reads a CSV manifest; the top of this file describes its form.

    Args:
      path: the CSV.
      root: folder that its paths are relative to; by default the folder of the CSV.

    Raises:
      UserError: the file is missing, is not such a table, lists a page twice, or lists no page;
        the message names the file and the line.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    header, rows = read_table(path)
    header = _column_names(header)
    if "path" not in header:
        raise UserError(
            f"{path}: the header has no column `path`, only {', '.join(map(repr, header))}"
        )
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise UserError(f"{path}: the header names the column {min(repeated)!r} twice")
    if any(name in header for name in BOX) and not all(name in header for name in BOX):
        raise UserError(f"{path}: a box needs all of the columns x0, y0, x1, y1")
    columns = tuple(name for name in header if name not in ("path", *LABELS, *BOX))
    pages: list[Page] = []
    lines: dict[str, int] = {}
    finder = FormFinder()
    for line, cells in rows:
        where = f"{path} line {line}"
        if len(cells) != len(header):
            raise UserError(
                f"{where}: {len(cells)} cells under a header of {len(header)}; a cell that holds "
                "the separator must stand in double quotes"
            )
        page = _page(dict(zip(header, cells)), columns, root, where, finder)
        if page.page_id in lines:
            raise UserError(
                f"{where}: {page.page_id!r} is listed already in line {lines[page.page_id]}; "
                "each page must be listed once, with one writer"
            )
        lines[page.page_id] = line
        pages.append(page)
    if not pages:
        raise UserError(f"{path} lists no page")
    return Manifest(root, tuple(pages), columns)


def bare_name(path: str) -> str:
    """The name of a page's file without folder and suffix, in Unicode's form NFC."""
    return composed(posixpath.splitext(posixpath.basename(frames.parse(path).file))[0])


def shared_names(pages: Sequence[Page]) -> frozenset[str]:
    """The bare names that several files have."""
    files = {frames.parse(page.path).file for page in pages}
    counts = Counter(bare_name(file) for file in files)
    return frozenset(name for name, count in counts.items() if count > 1)


def _column_names(header: Sequence[str]) -> list[str]:
    """The header with the columns that have a meaning in small letters."""
    names = [
        name.lower() if name.lower() in _KNOWN_COLUMNS and name.lower() not in header else name
        for name in header
    ]
    # `imgs` is the name of this column in the tables of the published code.
    return ["path" if name == "imgs" and "path" not in names else name for name in names]


def _page(
    row: dict[str, str], columns: Sequence[str], root: Path, where: str, finder: FormFinder
) -> Page:
    cell = row["path"]
    ending = frames.ending(cell.strip())
    path = _path(cell.strip().removesuffix(ending) if ending else cell, root, where, finder)
    if posixpath.isabs(path):
        path = Path(os.path.relpath(path, root)).as_posix()
    path = finder.find(root, posixpath.normpath(path)) + ending
    extra = {name: composed(row[name]) for name in columns}
    if extra.get("scale", "").strip() in MISSING[:4]:
        extra["scale"] = ""
    page = Page(path, **page_labels(path, row), box=_box(row, where), extra=extra)
    _check_scale(page, where)
    if page.polarity not in POLARITIES:
        raise UserError(
            f"{where}: the polarity {page.polarity!r} is none of {', '.join(POLARITIES)}; rename "
            "the column `polarity` if it means something else"
        )
    return page


def _path(cell: str, root: Path, where: str, finder: FormFinder) -> str:
    """The cell `path`, with forward slashes if it was written on Windows."""
    if not cell.strip():
        raise UserError(f"{where}: the cell `path` is empty")
    path = cell.strip().replace("\\", "/")
    foreign = re.match(r"[A-Za-z]:[\\/]|\\\\", cell.strip()) is not None
    # Names of files may hold backslashes, and begin or end with spaces.
    if (not foreign and path == cell) or (root / cell).exists():
        return cell
    if foreign:
        raise UserError(
            f"{where}: the path {cell!r} is that of a Windows computer; write paths relative to "
            f"the folder of the table, such as {posixpath.basename(path)!r}"
        )
    return path if (root / finder.find(root, path)).exists() else cell


def _check_scale(page: Page, where: str) -> None:
    try:
        good = 0 < page.scale < math.inf
    except ValueError:
        good = False
    if not good:
        raise UserError(
            f"{where}: the scale {page.extra['scale']!r} is not a positive number; the column "
            "`scale` holds factors that pages are resized by, rename it if it means something else"
        )


def page_labels(path: str, values: dict[str, str]) -> dict[str, str]:
    """Writer, page and split, without surrounding spaces; `page` defaults to the file name."""
    labels = {name: composed(values.get(name, "").strip()) for name in LABELS}
    labels["page"] = labels["page"] or composed(frames.label(path))
    return labels


def _box(row: dict[str, str], where: str) -> tuple[int, int, int, int] | None:
    cells = [row.get(name, "").strip() for name in BOX]
    if not any(cells) or all(cell in MISSING for cell in cells):
        return None
    try:
        # pandas writes whole numbers as 300.0 where a cell of the column is empty.
        x0, y0, x1, y1 = (int(re.sub(r"[.]0*$", "", cell)) for cell in cells)
    except ValueError:
        raise UserError(f"{where}: the box {','.join(cells)} is not four whole numbers") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise UserError(
            f"{where}: the box {x0},{y0},{x1},{y1} must satisfy 0 <= x0 < x1 and 0 <= y0 < y1"
        )
    return x0, y0, x1, y1
