"""Pictures of pages in a report: a thumbnail of each, and a large one as far as the file may grow.

A file of a report has at most `report.max_mb` megabytes. The large pictures, in which pages are
compared, have the first of these forms that fits for all pages of the file:

1. `colour`: WebP, at most `report.picture` pixels high and wide;
2. `ink`: the ink of the page, black on white, WebP without losses, in the same size;
3. `small_ink`: the same, with sides of two thirds;
4. `small_ink` for the first pages alone, the most important first; the others have a thumbnail.

If the thumbnails alone are too large, they get half their sides, and there are no large pictures.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import AUTO, LIGHT_ON_DARK
from saghog_jax.input_pipeline.regions.page_check import find_writing
from saghog_jax.reports.thumbnails import (
    at_most,
    data_uri,
    read_pages,
    reduced,
    thumbnail,
)
from saghog_jax.retrieval.embeddings import Embeddings

COLOUR, INK, SMALL_INK = "colour", "ink", "small_ink"
_SMALL = 2 / 3
# Pages that are read together: an image with several boxes is decoded once among them.
_TOGETHER = 100


class Shown(NamedTuple):
    """A page of a file: its name in the data, and its row."""

    key: str
    pages: Embeddings
    row: int


class Fit(NamedTuple):
    """How the pictures of a file were made to fit.

    form: of the large pictures.
    large, wanted: number of large pictures, and of pages that are larger than their thumbnail.
    half: whether the thumbnails were reduced.
    fits: whether the file has at most `report.max_mb` megabytes.
    """

    form: str
    large: int
    wanted: int
    half: bool
    fits: bool


def page_pictures(
    shown: Sequence[Shown], report: ConfigDict, others: int
) -> tuple[dict[str, dict], Fit]:
    """The pictures of the pages of one file.

    Args:
      shown: the pages, the most important first.
      report: `saghog_jax.configs.retrieve.report_config`.
      others: bytes of everything else in the file.

    Returns:
      for each key `image` (the thumbnail), `size` (width and height of the page) and, as far as
      they fit, `large` and `form`, or `missing` (the reason); and how they were made to fit.

    Raises:
      UserError: a size that is not above 0.
    """
    for name in ("max_mb", "picture", "thumbnail"):
        if report[name] <= 0:
            raise UserError(f"config.report.{name}={report[name]:g} must be above 0")
    room = int(report.max_mb * 1e6) - others
    pictures: dict[str, dict] = {}
    form, large, fits, wanted = COLOUR, {}, True, 0
    for together in _in_blocks(shown):
        for page, part in _read(together, report.max_pixels):
            pictures[page.key] = thumbnail(part, report.thumbnail)
            if _is_large(part, report):
                wanted += 1
                if fits:
                    large[page.key] = _large(page, part, form, report.picture)
        fits = fits and _size(large) <= room - _bytes(pictures)
    half = _bytes(pictures) > room
    if half:
        form, large = SMALL_INK, {}
        _halve(pictures, report.thumbnail)
    elif not fits:
        left = room - _bytes(pictures)
        form, large = _inked(shown, report, left)
        large = _first(large, shown, left)
    for key, uri in large.items():
        pictures[key] |= {"large": uri, "form": form}
    return pictures, Fit(form, len(large), wanted, half, _bytes(pictures) <= room)


def _inked(shown: Sequence[Shown], report: ConfigDict, room: int) -> tuple[str, dict[str, str]]:
    """Large pictures of ink: of all pages in the first form that fits, else of the first pages.

    The pages are read again, which only reports need that have no room for colours.
    """
    for form in (INK, SMALL_INK):
        large: dict[str, str] = {}
        for together in _in_blocks(shown):
            for page, part in _read(together, report.max_pixels):
                if _is_large(part, report):
                    large[page.key] = _large(page, part, form, report.picture)
            if _size(large) > room:
                break
        else:
            break
    return form, large


def _in_blocks(shown: Sequence[Shown]) -> Iterator[Sequence[Shown]]:
    for first in range(0, len(shown), _TOGETHER):
        yield shown[first : first + _TOGETHER]


def _is_large(part: np.ndarray | str, report: ConfigDict) -> bool:
    """Whether a page was read and is larger than its thumbnail."""
    return not isinstance(part, str) and max(part.shape[:2]) > report.thumbnail


def _read(shown: Sequence[Shown], max_pixels: int) -> Iterator[tuple[Shown, np.ndarray | str]]:
    """Each page with its image or the reason why there is none, as `read_pages` returns it."""
    for pages in {id(page.pages): page.pages for page in shown}.values():
        by_row = {page.row: page for page in shown if page.pages is pages}
        for row, part in read_pages(pages, by_row, max_pixels):
            yield by_row[row], part


def _large(page: Shown, part: np.ndarray, form: str, side: int) -> str:
    if form == COLOUR:
        return data_uri(part, side)
    return _ink(part, _polarity(page), side if form == INK else max(1, round(_SMALL * side)))


def _ink(part: np.ndarray, polarity: str, side: int) -> str:
    """The data URI of the ink of a page, black on white."""
    grey = to_grey(np.ascontiguousarray(at_most(part, side)), "opencv")
    if find_writing(grey, polarity).polarity == LIGHT_ON_DARK:
        grey = 255 - grey
    paper = (1 - ink_mask(grey, "sauvola")) * np.uint8(255)
    return data_uri(cv2.cvtColor(paper, cv2.COLOR_GRAY2RGB), side, lossless=True)


def _polarity(page: Shown) -> str:
    known = page.pages.table.get("polarity")
    return (str(known[page.row]).strip() if known is not None else "") or AUTO


def _halve(pictures: dict[str, dict], side: int) -> None:
    for picture in pictures.values():
        if "image" in picture:
            picture["image"] = reduced(picture["image"], max(1, side // 2))


def _first(large: dict[str, str], shown: Sequence[Shown], room: int) -> dict[str, str]:
    """The large pictures of the first pages, as many as there is room for."""
    chosen: dict[str, str] = {}
    for page in shown:
        if page.key in large:
            room -= len(large[page.key])
            if room < 0:
                break
            chosen[page.key] = large[page.key]
    return chosen


def _size(uris: dict[str, str]) -> int:
    return sum(map(len, uris.values()))


def _bytes(pictures: dict[str, dict]) -> int:
    return sum(len(picture.get("image", "")) for picture in pictures.values())
