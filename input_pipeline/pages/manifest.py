"""The table of pages: images, a CSV, a IIIF manifest, a public collection, or the built-in corpus.

A CSV has a header with at least `path` (relative to the CSV's folder; the published code's name
`imgs` is understood too). `writer`, `page` and `split` are labels, `x0,y0,x1,y1` a box in pixels
that makes a page of a part of the image, `scale` a factor that it is resized by; all other columns
are carried along. It is UTF-8, its cells separated by comma, semicolon or tab. Public collections
are named by `tfds:NAME`, see `datasets.catalog`.
"""

import csv
import math
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.csv_files import read_table
from saghog_jax.input_pipeline.datasets import catalog, synthetic
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES
from saghog_jax.input_pipeline.pages import iiif, image_names
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints

LABELS = ("writer", "page", "split")
BOX = ("x0", "y0", "x1", "y1")
# File in `data.cache` that remembers the SHA-256 of page files.
CONTENTS_CACHE = "page_fingerprints.json"


class Page(NamedTuple):
    """One page: an image file, or a box of one.

    path: relative to the manifest's root, with forward slashes.
    writer, page, split: labels, empty where unknown.
    box: x0, y0, x1, y1 in pixels, the last two exclusive; None for the whole image.
    extra: further columns, as text; `scale` among them is read by `scale`.
    """

    path: str
    writer: str
    page: str
    split: str
    box: tuple[int, int, int, int] | None
    extra: dict[str, str]

    @property
    def scale(self) -> float:
        """Factor the page is resized by, besides the store's; 1 where the table gives none."""
        return float(self.extra.get("scale") or 1)

    @property
    def page_id(self) -> str:
        """What identifies the page: its path, with the box if it has one."""
        if self.box is None:
            return self.path
        return f"{self.path}#{','.join(map(str, self.box))}"


@dataclass(frozen=True)
class Manifest:
    """Pages in a fixed order.

    root: folder that the paths are relative to.
    columns: names of the further columns, in order.
    contents_cache: JSON file in which `contents` remembers hashes between runs; None: nowhere.
    """

    root: Path
    pages: tuple[Page, ...]
    columns: tuple[str, ...]
    contents_cache: Path | None = None
    # SHA-256 by path. Shared by the manifests that `select`, `at_scales` and `replace` derive.
    _contents: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def writers(self) -> list[str]:
        """Known writers, sorted; the empty one is none of them."""
        return sorted({page.writer for page in self.pages} - {""})

    def contents(self) -> dict[str, str]:
        """SHA-256 of each page file by `Page.path`, "" if the file cannot be read.

        Each file is read at most once per manifest and the manifests derived from it.
        """
        new = {page.path for page in self.pages} - self._contents.keys()
        if new:
            self._contents.update(fingerprints(self.root, new, self.contents_cache))
        return {page.path: self._contents[page.path] for page in self.pages}

    def select(self, split: str) -> "Manifest":
        """The pages of a split; all of them where `split` is empty or no page has one.

        Raises:
          UserError: no page has this split.
        """
        known = sorted({page.split for page in self.pages} - {""})
        if not split or not known:
            return self
        if split not in known:
            raise UserError(f"no page has the split {split!r}, known: {', '.join(known)}")
        return replace(self, pages=tuple(page for page in self.pages if page.split == split))

    def at_scales(self, scales: Sequence[float]) -> "Manifest":
        """Each page once for each factor, one after the other, resized by it besides its own."""
        if tuple(scales) == (1.0,):
            return self
        views = tuple(
            page._replace(extra=page.extra | {"scale": repr(page.scale * scale)})
            for page in self.pages
            for scale in scales
        )
        return replace(self, pages=views)

    def write(self, csv_path: Path) -> None:
        """Writes the table as a CSV. Paths stay as they are, relative to `root`."""
        boxed = any(page.box for page in self.pages)
        header = ["path", *LABELS, *(BOX if boxed else ()), *self.columns]
        with open(csv_path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for page in self.pages:
                box = (page.box or ("",) * 4) if boxed else ()
                extra = (page.extra[name] for name in self.columns)
                table.writerow([page.path, page.writer, page.page, page.split, *box, *extra])


def load_manifest(data: ConfigDict) -> Manifest:
    """The pages that a data section (configs/common.py data_config) names, of its split.

    Raises:
      UserError: whatever keeps `data.pages` from naming at least one page.
    """
    if data.cluster_regex:
        raise UserError(
            f"data.cluster_regex={data.cluster_regex!r} makes data.pages a folder of ready-cut "
            "patches, which only pretraining (from a store) and finetuning read; pages are needed"
        )
    source = Path(data.pages).expanduser()
    if data.pages == "synthetic":
        manifest = read_csv(synthetic.ensure(Path(data.cache)))
    elif data.pages.startswith(catalog.PREFIX):
        _no_expressions(data, "a public collection")
        manifest = _read_collection(data.pages, data.split)
    elif _is_scanned(data):
        manifest = scan_folder(source, data.writer_regex, data.page_regex)
    elif iiif.is_manifest(data.pages):
        _no_expressions(data, "a IIIF manifest")
        manifest = _read_iiif(data)
    elif source.is_file() and source.name.lower().endswith(IMAGE_SUFFIXES):
        _no_expressions(data, "one image")
        page = Page(source.name, **_labels(source.name, {}), box=None, extra={})
        manifest = Manifest(source.parent, (page,), ())
    elif source.exists():
        _no_expressions(data, "a file")
        manifest = read_csv(source / "manifest.csv" if source.is_dir() else source)
    else:
        raise UserError(
            f"data.pages={data.pages}: no such folder or file; give a folder of images, an image, "
            "a manifest (CSV, or IIIF as .json), `synthetic`, or a public collection such as "
            "`tfds:historical_wi`"
        )
    root, pages = manifest.root, manifest.pages
    if not any((root / page.path).exists() for page in pages):
        raise UserError(
            f"data.pages={data.pages}: none of the {len(pages)} files listed exists, such as "
            f"{str(root / pages[0].path)!r}; paths are relative to the folder of the CSV"
        )
    cache = Path(data.cache) / CONTENTS_CACHE
    return replace(manifest, contents_cache=cache).select(data.split)


def _is_scanned(data: ConfigDict) -> bool:
    source = Path(data.pages).expanduser()
    expressions = bool(data.writer_regex or data.page_regex)
    return source.is_dir() and (expressions or not (source / "manifest.csv").is_file())


def other_files(data: ConfigDict) -> list[str]:
    """Files of a folder of images that are no images by their names, so that they are left out.

    Sorted paths below the folder; none where `data.pages` is something else than a folder that is
    searched for images.
    """
    if not _is_scanned(data):
        return []
    names = image_names.below(Path(data.pages).expanduser())
    return sorted(name for name in names if not name.lower().endswith(IMAGE_SUFFIXES))


def _no_expressions(data: ConfigDict, kind: str) -> None:
    if data.writer_regex or data.page_regex:
        raise UserError(
            "data.writer_regex and data.page_regex are for folders of images; "
            f"data.pages={data.pages} is {kind}"
        )


def _read_collection(pages: str, split: str) -> Manifest:
    root, columns, rows = catalog.list_pages(catalog.parse(pages), split)
    found = tuple(Page(r.path, r.writer, r.page, r.split, None, r.extra) for r in rows)
    return Manifest(root, found, columns)


def _read_iiif(data: ConfigDict) -> Manifest:
    cache = Path(data.cache) / "iiif"
    root, found = iiif.read(data.pages, data.iiif.images, tuple(data.iiif.hosts), cache)
    pages: dict[str, Page] = {}
    for page in found:
        extra = {"canvas": page.canvas, "manifest": page.manifest}
        labels = _labels(page.path, {"page": page.label})
        # Two canvases may show one image; it is one page.
        pages.setdefault(page.path, Page(page.path, **labels, box=None, extra=extra))
    return Manifest(root, tuple(pages.values()), iiif.COLUMNS)


def scan_folder(folder: Path, writer_regex: str, page_regex: str) -> Manifest:
    """Lists the images in a folder and below, sorted by path; hidden files are left out.

    Args:
      folder: where to look. Links to other folders are not followed.
      writer_regex, page_regex: searched in the path below the folder. The group named `writer`
        or `page`, else the first group, is the value; every other named group becomes a column
        (`split` the split). Without an expression the writer is empty, the page the file's name.
        A group that takes no part in a match gives an empty value.

    Raises:
      UserError: no image; an expression that is malformed, has no group, or does not match.
    """
    names, found, groups = image_names.search(
        folder, {"writer": writer_regex, "page": page_regex}, reserved=("path", *BOX)
    )
    columns = tuple(group for group in groups if group not in LABELS)
    pages = tuple(
        Page(
            name,
            **_labels(name, values),
            box=None,
            extra={column: values[column] for column in columns},
        )
        for name, values in zip(names, found)
    )
    return Manifest(Path(folder), pages, columns)


def read_csv(path: Path, root: Path | None = None) -> Manifest:
    """Reads a manifest; see the top of this file for its form.

    Args:
      path: the CSV.
      root: folder that the paths in it are relative to, the CSV's own by default.

    Raises:
      UserError: a file that is missing or no such table, a page listed twice, no page at all;
        names the file and the line.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    header, rows = read_table(path)
    # The name of the column in the published code's tables.
    header = ["path" if name == "imgs" and "path" not in header else name for name in header]
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
    for line, cells in rows:
        where = f"{path} line {line}"
        if len(cells) != len(header):
            raise UserError(
                f"{where}: {len(cells)} cells under a header of {len(header)}; a cell that holds "
                "the separator must stand in double quotes"
            )
        page = _page(dict(zip(header, cells)), columns, root, where)
        if page.page_id in lines:
            raise UserError(
                f"{where}: {page.page_id!r} is listed already in line {lines[page.page_id]}; "
                "a page is listed once, under one writer"
            )
        lines[page.page_id] = line
        pages.append(page)
    if not pages:
        raise UserError(f"{path} lists no page")
    return Manifest(root, tuple(pages), columns)


def _page(row: dict[str, str], columns: Sequence[str], root: Path, where: str) -> Page:
    path = row["path"]
    if not path:
        raise UserError(f"{where}: the cell `path` is empty")
    if posixpath.isabs(path):
        path = Path(os.path.relpath(path, root)).as_posix()
    path = posixpath.normpath(path)
    extra = {name: row[name] for name in columns}
    page = Page(path, **_labels(path, row), box=_box(row, where), extra=extra)
    _check_scale(page, where)
    return page


def _check_scale(page: Page, where: str) -> None:
    try:
        good = 0 < page.scale < math.inf
    except ValueError:
        good = False
    if not good:
        raise UserError(
            f"{where}: the scale {page.extra['scale']!r} is no positive number; the column `scale` "
            "holds factors that pages are resized by, rename it if it means something else"
        )


def _labels(path: str, values: dict[str, str]) -> dict[str, str]:
    """Writer, page and split of a page, without space around them; the page has always a name."""
    labels = {name: values.get(name, "").strip() for name in LABELS}
    labels["page"] = labels["page"] or posixpath.splitext(posixpath.basename(path))[0].strip()
    return labels


def _box(row: dict[str, str], where: str) -> tuple[int, int, int, int] | None:
    cells = [row.get(name, "").strip() for name in BOX]
    if not any(cells):
        return None
    try:
        x0, y0, x1, y1 = map(int, cells)
    except ValueError:
        raise UserError(f"{where}: the box {','.join(cells)} is not four whole numbers") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise UserError(
            f"{where}: the box {x0},{y0},{x1},{y1} must satisfy 0 <= x0 < x1 and 0 <= y0 < y1"
        )
    return x0, y0, x1, y1
