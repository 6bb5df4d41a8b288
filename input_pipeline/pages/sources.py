"""Where pages come from: images, a CSV, a IIIF manifest, a public collection, the built-in corpus.

`data.pages` is a folder of images, one image, a PDF or a folder of PDFs, a manifest (CSV, or IIIF
as .json), `tfds:NAME` for a public collection (see `datasets.catalog`), or `synthetic` for the
built-in corpus.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.datasets import catalog, synthetic
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.file_kinds import (
    HEIC,
    HEIC_REMEDY,
    PDF_REMEDY,
    can_read_heic,
    read_kind,
)
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, PDF_SUFFIX, user_path
from saghog_jax.input_pipeline.pages import frame_pages, frames, iiif, image_names, pdf
from saghog_jax.input_pipeline.pages.manifest import (
    BOX,
    LABELS,
    MISSING,
    POLARITIES,
    Manifest,
    Page,
    page_labels,
    read_csv,
    shared_names,
)
from saghog_jax.input_pipeline.unicode_forms import existing_path

logger = logging.getLogger(__name__)

# File in `data.cache` that remembers the SHA-256 of page files.
CONTENTS_CACHE = "page_fingerprints.json"
# Marks of an unknown writer in tables, besides MISSING.
_UNKNOWN_WRITERS = ("?", "-", "unknown", "Unknown", "unbekannt")


def load_manifest(data: ConfigDict, tell: bool = True) -> Manifest:
    """The pages of a data section (`data_config` of configs/common.py), restricted to its split.

    Args:
      tell: logs the files that are left out.

    Raises:
      UserError: `data.pages` does not lead to at least one page.
    """
    check_choice("data.polarity", data.polarity, POLARITIES)
    if data.cluster_regex:
        raise UserError(
            f"data.cluster_regex={data.cluster_regex!r} declares data.pages a folder of ready-cut "
            "patches, which only pretraining (from a store) and finetuning read; pages are needed"
        )
    manifest, lines = _read_pages(data)
    root, pages = manifest.root, manifest.pages
    if not any(frames.file_of(root / page.path).exists() for page in pages):
        raise UserError(
            f"data.pages={data.pages}: none of the {len(pages)} files listed exists, such as "
            f"{str(root / pages[0].path)!r}; paths are relative to the folder of the CSV"
        )
    manifest = replace(
        manifest,
        contents_cache=Path(data.cache) / CONTENTS_CACHE,
        namesakes=shared_names(pages),
    )
    manifest = manifest.with_polarity(data.polarity)
    manifest = manifest.select(data.split)
    # Public collections and the images of IIIF canvases have one page a file.
    if not (data.pages.startswith(catalog.PREFIX) or iiif.is_manifest(data.pages)):
        manifest, more = frame_pages.expand(manifest)
        lines = lines + more
    for line in lines if tell else ():
        logger.warning(line)
    return manifest


def _read_pages(data: ConfigDict) -> tuple[Manifest, list[str]]:
    """All pages of `data.pages`, and lines about what is left out or read in another way."""
    source = existing_path(user_path(data.pages))
    suffix = source.suffix.lower()
    if data.pages == "synthetic":
        return read_csv(synthetic.ensure(Path(data.cache))), []
    if data.pages.startswith(catalog.PREFIX):
        _no_expressions(data, "a public collection")
        return _read_collection(data.pages, data.split), []
    if _is_scanned(data, source):
        return _scan(data, source)
    if iiif.is_manifest(data.pages):
        _no_expressions(data, "a IIIF manifest")
        return _read_iiif(data)
    if source.is_file() and suffix == PDF_SUFFIX:
        return _read_pdfs(data, source.parent, [source.name])
    if source.is_file() and suffix in IMAGE_SUFFIXES:
        _no_expressions(data, "one image")
        if read_kind(source) == HEIC and not can_read_heic():
            raise UserError(f"data.pages={data.pages} is a HEIC image; {HEIC_REMEDY}")
        page = Page(source.name, **page_labels(source.name, {}), box=None, extra={})
        return Manifest(source.parent, (page,), ()), []
    if source.exists():
        _no_expressions(data, "a file")
        table = source / "manifest.csv" if source.is_dir() else source
        return _without_marks(read_csv(table), table)
    raise UserError(
        f"data.pages={data.pages}: no such folder or file; give a folder of images, an image, a "
        "PDF, a manifest (CSV, or IIIF as .json), `synthetic`, or a public collection such as "
        "`tfds:historical_wi`"
    )


def _is_scanned(data: ConfigDict, source: Path) -> bool:
    expressions = bool(data.writer_regex or data.page_regex)
    return source.is_dir() and (expressions or not (source / "manifest.csv").is_file())


def _without_marks(manifest: Manifest, table: Path) -> tuple[Manifest, list[str]]:
    """The manifest without marks of an unknown value (`NA`), which would be one writer of many."""
    marks: Counter[str] = Counter()
    unknown = 0

    def empty(cell: str, known: Sequence[str] = MISSING) -> str:
        if cell not in known:
            return cell
        marks[cell] += 1
        return ""

    pages = []
    for page in manifest.pages:
        writer = empty(page.writer, (*MISSING, *_UNKNOWN_WRITERS))
        unknown += writer != page.writer
        labels = page_labels(page.path, {"page": empty(page.page), "split": empty(page.split)})
        extra = {name: empty(cell) for name, cell in page.extra.items()}
        pages.append(page._replace(**labels | {"writer": writer}, extra=extra))
    if not marks:
        return manifest, []
    named = ", ".join(map(repr, sorted(marks)))
    line = (
        f"{table}: {marks.total():,} cells hold {named}. Programs write this for an unknown value, "
        f"so these cells are read as empty; {unknown:,} of them are writers, who count as unknown. "
        "If one is a name, write it in another way"
    )
    return replace(manifest, pages=tuple(pages)), [line]


def _scan(data: ConfigDict, folder: Path) -> tuple[Manifest, list[str]]:
    """The images of a folder, or the pages of its PDFs if it has no image."""
    listing = image_names.list_files(folder)
    lines = list(_left_out(listing))
    if not listing.images and listing.pdfs:
        manifest, more = _read_pdfs(data, folder, listing.pdfs)
        return manifest, lines + more
    if listing.pdfs:
        lines.append(
            f"{len(listing.pdfs):,} PDF files are left out, since the folder holds images, of "
            f"which PDFs are often copies: {image_names.named(listing.pdfs)}; to read them, give a "
            "PDF or a folder of PDFs as data.pages"
        )
    return scan_folder(folder, data.writer_regex, data.page_regex, listing), lines


def _left_out(listing: image_names.Listing) -> Iterator[str]:
    if listing.others:
        yield (
            f"{len(listing.others):,} files are not images and are left out: "
            f"{image_names.named(listing.others)}"
        )
    if listing.folders:
        yield (
            f"{len(listing.folders):,} folders of previews, deleted files or loops are left out: "
            f"{image_names.named(listing.folders)}"
        )
    heic = [name for name in listing.images if name.lower().endswith((".heic", ".heif", ".hif"))]
    if heic and not can_read_heic():
        yield f"{len(heic):,} HEIC images cannot be read: {image_names.named(heic)}; {HEIC_REMEDY}"


def _read_pdfs(data: ConfigDict, folder: Path, names: list[str]) -> tuple[Manifest, list[str]]:
    if not pdf.can_draw():
        raise UserError(
            f"data.pages={data.pages} leads to PDF files ({image_names.named(names)}); {PDF_REMEDY}"
        )
    cache = Path(data.cache)
    root, drawn, left_out = pdf.draw(
        folder, names, data.pdf_dpi, data.max_pixels, cache, cache / CONTENTS_CACHE
    )
    if not drawn:
        raise UserError(f"data.pages={data.pages}: no page can be read; {'; '.join(left_out)}")
    paths = {page.name: page.path for page in drawn}
    manifest = _labelled(list(paths), root, data.writer_regex, data.page_regex)
    pages = tuple(page._replace(path=paths[page.path]) for page in manifest.pages)
    lines = [f"{len(drawn):,} pages of {len(names):,} PDF files, at {data.pdf_dpi} dpi"]
    if left_out:
        lines.append(
            f"{len(left_out):,} PDF files or pages are left out: {image_names.named(left_out)}"
        )
    return replace(manifest, pages=pages), lines


def _no_expressions(data: ConfigDict, kind: str) -> None:
    if data.writer_regex or data.page_regex:
        raise UserError(
            "data.writer_regex and data.page_regex are for folders of images; "
            f"data.pages={data.pages} is {kind}"
        )


def _read_collection(pages: str, split: str) -> Manifest:
    root, columns, rows = catalog.list_pages(catalog.parse(pages), split)
    listed = tuple(Page(r.path, r.writer, r.page, r.split, None, r.extra) for r in rows)
    return Manifest(root, listed, columns)


def _read_iiif(data: ConfigDict) -> tuple[Manifest, list[str]]:
    cache = Path(data.cache) / "iiif"
    root, found, lines = iiif.read(data.pages, data.iiif.images, tuple(data.iiif.hosts), cache)
    columns = iiif.columns(found)
    pages = tuple(
        Page(
            page.path,
            **page_labels(page.path, {"page": page.label}),
            box=page.box,
            extra={name: page.extra[name] for name in columns},
        )
        for page in found
    )
    return Manifest(root, pages, columns), lines


def scan_folder(
    folder: Path, writer_regex: str, page_regex: str, listing: image_names.Listing | None = None
) -> Manifest:
    """Lists the images in a folder and its subfolders, sorted by path (`image_names.list_files`).

    Args:
      folder: of the images.
      writer_regex, page_regex: searched in the path below the folder, in Unicode's form NFC. The
        group named `writer` or `page`, else the first group, is the value; every other named group
        becomes a column (`split` becomes the split). If an expression is empty, the writer is empty
        or the page is the file's name. A group that does not participate in a match gives an empty
        value.
      listing: of the folder, if it is known already.

    Raises:
      UserError: there is no image, or an expression is malformed, has no group, or does not match.
    """
    listing = listing or image_names.list_files(folder)
    image_names.check_images(folder, listing)
    return _labelled(listing.images, Path(folder), writer_regex, page_regex)


def _labelled(names: Sequence[str], root: Path, writer_regex: str, page_regex: str) -> Manifest:
    """Pages with the labels in their names."""
    values, groups = image_names.match(
        names, {"writer": writer_regex, "page": page_regex}, reserved=("path", *BOX)
    )
    columns = tuple(group for group in groups if group not in LABELS)
    pages = tuple(
        Page(
            name,
            **page_labels(name, labels),
            box=None,
            extra={column: labels[column] for column in columns},
        )
        for name, labels in zip(names, values)
    )
    return Manifest(root, pages, columns)
