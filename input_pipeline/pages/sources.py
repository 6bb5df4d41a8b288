"""Where pages come from: images, a CSV, a IIIF manifest, a public collection, the built-in corpus.

`data.pages` is a folder of images, one image, a manifest (CSV, or IIIF as .json), `tfds:NAME` for a
public collection (see `datasets.catalog`), or `synthetic` for the built-in corpus.
"""

import logging
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.datasets import catalog, synthetic
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES
from saghog_jax.input_pipeline.pages import frame_pages, frames, iiif, image_names
from saghog_jax.input_pipeline.pages.manifest import (
    BOX,
    LABELS,
    Manifest,
    Page,
    page_labels,
    read_csv,
)

logger = logging.getLogger(__name__)

# File in `data.cache` that remembers the SHA-256 of page files.
CONTENTS_CACHE = "page_fingerprints.json"


def load_manifest(data: ConfigDict) -> Manifest:
    """The pages of a data section (`data_config` of configs/common.py), restricted to its split.

    Raises:
      UserError: `data.pages` does not lead to at least one page.
    """
    if data.cluster_regex:
        raise UserError(
            f"data.cluster_regex={data.cluster_regex!r} declares data.pages a folder of ready-cut "
            "patches, which only pretraining (from a store) and finetuning read; pages are needed"
        )
    source, lines = Path(data.pages).expanduser(), []
    if data.pages == "synthetic":
        manifest = read_csv(synthetic.ensure(Path(data.cache)))
    elif data.pages.startswith(catalog.PREFIX):
        _no_expressions(data, "a public collection")
        manifest = _read_collection(data.pages, data.split)
    elif _is_scanned(data):
        manifest = scan_folder(source, data.writer_regex, data.page_regex)
    elif iiif.is_manifest(data.pages):
        _no_expressions(data, "a IIIF manifest")
        manifest, lines = _read_iiif(data)
    elif source.is_file() and source.name.lower().endswith(IMAGE_SUFFIXES):
        _no_expressions(data, "one image")
        page = Page(source.name, **page_labels(source.name, {}), box=None, extra={})
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
    if not any(frames.file_of(root / page.path).exists() for page in pages):
        raise UserError(
            f"data.pages={data.pages}: none of the {len(pages)} files listed exists, such as "
            f"{str(root / pages[0].path)!r}; paths are relative to the folder of the CSV"
        )
    cache = Path(data.cache) / CONTENTS_CACHE
    manifest = replace(manifest, contents_cache=cache).select(data.split)
    # Public collections and the images of IIIF canvases have one page a file.
    if not (data.pages.startswith(catalog.PREFIX) or iiif.is_manifest(data.pages)):
        manifest, lines = frame_pages.expand(manifest)
    for line in lines:
        logger.info(line)
    return manifest


def _is_scanned(data: ConfigDict) -> bool:
    source = Path(data.pages).expanduser()
    expressions = bool(data.writer_regex or data.page_regex)
    return source.is_dir() and (expressions or not (source / "manifest.csv").is_file())


def other_files(data: ConfigDict) -> list[str]:
    """Files in a folder of images that are left out, since their names are not those of images.

    Returns:
      sorted paths below the folder; empty if `data.pages` is not a folder searched for images.
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


def scan_folder(folder: Path, writer_regex: str, page_regex: str) -> Manifest:
    """Lists the images in a folder and its subfolders, sorted by path; hidden files are left out.

    Args:
      folder: of the images. Links to other folders are not followed.
      writer_regex, page_regex: searched in the path below the folder. The group named `writer`
        or `page`, else the first group, is the value; every other named group becomes a column
        (`split` becomes the split). If an expression is empty, the writer is empty or the page is
        the file's name. A group that does not participate in a match gives an empty value.

    Raises:
      UserError: there is no image, or an expression is malformed, has no group, or does not match.
    """
    names, values, groups = image_names.search(
        folder, {"writer": writer_regex, "page": page_regex}, reserved=("path", *BOX)
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
    return Manifest(Path(folder), pages, columns)
