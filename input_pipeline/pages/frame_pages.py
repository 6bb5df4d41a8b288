"""Lists the images of TIFF files that hold several: each one in full resolution is a page."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages import frames, tiff
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page


class _Images(NamedTuple):
    """Numbers of the images in full resolution, from 1; how many others the file holds."""

    pages: tuple[int, ...]
    copies: int


def expand(manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Replaces each page that is a TIFF of several pages by these pages.

    A page of such a file has the path `volume.tif#frame=2` and the labels of its file; the number
    is added to the label `page`. Files of one page keep their path, whatever thumbnails they hold.

    Returns:
      the manifest, and lines that say how many pages and reduced copies there are.

    Raises:
      UserError: a box refers to a file of several pages, but to none of its images; or a page is
        listed by itself and by its file.
    """
    paths = sorted({page.path for page in manifest.pages if _may_hold_several(page.path)})
    with ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(lambda path: _images(manifest.root / path), paths)))
    pages: list[Page] = []
    for page in manifest.pages:
        numbers = found[page.path].pages if page.path in found else ()
        if len(numbers) < 2:
            pages.append(page)
            continue
        if page.box is not None:
            raise UserError(
                f"{page.page_id}: the file holds {len(numbers)} pages, and the box does not say in "
                f"which it lies; write {frames.with_frame(page.path, numbers[0])!r} as the path"
            )
        for number in numbers:
            path = frames.with_frame(page.path, number)
            pages.append(page._replace(path=path, page=f"{page.page} frame {number}"))
    [(page_id, count)] = Counter(page.page_id for page in pages).most_common(1)
    if count > 1:
        raise UserError(f"{page_id!r} is listed twice: as itself, and by the name of its file")
    return replace(manifest, pages=tuple(pages)), list(_lines(list(found.values())))


def _lines(found: Sequence[_Images]) -> Iterator[str]:
    several = [len(images.pages) for images in found if len(images.pages) > 1]
    if several:
        yield (
            f"{len(several):,} TIFF files hold several pages: {sum(several):,} pages, named "
            "FILE#frame=NUMBER"
        )
    copies = [images.copies for images in found if images.copies]
    if copies:
        yield (
            f"{sum(copies):,} images in {len(copies):,} TIFF files are left out: thumbnails, other "
            "reduced copies, and transparency masks"
        )


def _may_hold_several(path: str) -> bool:
    return path.lower().endswith(tiff.SUFFIXES)


def _images(path: Path) -> _Images:
    """The images of a file; of a file that cannot be read, none."""
    try:
        with open(path, "rb") as file:
            if not tiff.is_tiff(file):
                return _Images((), 0)
            found = tiff.directories(file)
    except OSError:
        return _Images((), 0)
    pages = tiff.pages(found)
    return _Images(tuple(page.number for page in pages), len(found) - len(pages))
