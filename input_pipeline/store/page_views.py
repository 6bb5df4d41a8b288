"""Reads a page and its mask, and cuts the page at several scales."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.cutting.one_pass import cut_scales
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule, cut_page
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page, resize_page
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.input_pipeline.regions.page_check import checked_page
from saghog_jax.input_pipeline.regions.page_mask import (
    OK,
    PageMask,
    one_line,
    read_mask,
    resize_mask,
)


class View(NamedTuple):
    """A page resized by a factor.

    image: uint8 [h, w, 3], RGB.
    mask: bool [h, w], True on handwriting; None if no region backend was used.
    inverted: whether the page has light writing on dark ground and was inverted.
    """

    image: np.ndarray
    mask: np.ndarray | None
    inverted: bool = False


class OpenedCuts(NamedTuple):
    """The patches of a page at each scale, or the error; `inverted` as in `View`."""

    cuts: list[Cut | PageError]
    inverted: bool


def open_view(
    root: Path, page: Page, max_pixels: int, factor: float, page_mask: PageMask | None = None
) -> View:
    """Reads a page and its mask and resizes both by `factor`.

    Args:
      root: folder of the page's path.
      max_pixels: see `images.load_page`.
      page_mask: the result of the region backend for this page, if one was used.

    Raises:
      NoWritingError: the page has no writing.
      PageError: the page or its mask cannot be read, or the page has too little handwriting.
    """
    image, mask, inverted = _open(root, page, max_pixels, page_mask)
    (view,) = resized_views(image, mask, (factor,), max_pixels, inverted)
    if isinstance(view, PageError):
        raise view
    return view


def open_cuts(
    root: Path,
    page: Page,
    rule: Rule,
    factors: Sequence[float],
    seeds: Sequence[int],
    max_pixels: int,
    page_mask: PageMask | None = None,
    colours: bool = True,
) -> OpenedCuts:
    """Reads a page and its mask once, and cuts the page at each factor; see `cut_views`.

    Args:
      root, max_pixels, page_mask: see `open_view`.
      colours: see `cut_views`.
    """
    try:
        image, mask, inverted = _open(root, page, max_pixels, page_mask)
    except PageError as error:
        return OpenedCuts([error] * len(factors), False)
    cuts = cut_views(image, mask, rule, factors, seeds, max_pixels, colours)
    return OpenedCuts(cuts, inverted)


def _open(
    root: Path, page: Page, max_pixels: int, page_mask: PageMask | None
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    if page_mask and page_mask.status != OK:
        raise PageError(f"{page_mask.status}: {page_mask.reason}")
    image = load_page(root / page.path, page.box, max_pixels)
    image, inverted = checked_page(image, page.polarity)
    return image, read_mask(page_mask.file) if page_mask else None, inverted


def cut_views(
    image: np.ndarray,
    mask: np.ndarray | None,
    rule: Rule,
    factors: Sequence[float],
    seeds: Sequence[int],
    max_pixels: int,
    colours: bool = True,
) -> list[Cut | PageError]:
    """The patches of a page at each factor (possibly none), or why it cannot be cut at it.

    Args:
      image: uint8 [h, w, 3], dark writing on light ground, as it was read.
      mask: bool [h, w]; None without a region backend.
      rule: how to cut; with `rule.detect_scale` above 0 in one pass.
      factors: by which the page is resized, `rule.scale` included.
      seeds: see `cut_page`, one for each factor.
      max_pixels: see `images.resize_page`; one pass makes no enlarged page.
      colours: False allows that `Cut.patches` has no channel.
    """
    if rule.detect_scale:
        inside = None if mask is None else resize_mask(mask, image.shape[:2])
        return cut_scales(image, rule, factors, seeds, inside, colours)
    views = resized_views(image, mask, factors, max_pixels)
    return [
        view if isinstance(view, PageError) else cut_page(view.image, rule, seed, mask=view.mask)
        for view, seed in zip(views, seeds, strict=True)
    ]


def resized_views(
    image: np.ndarray,
    mask: np.ndarray | None,
    factors: Sequence[float],
    max_pixels: int,
    inverted: bool = False,
) -> Iterator[View | PageError]:
    """Yields a page and its mask resized by each factor, or why they cannot be resized.

    Args:
      image: uint8 [h, w, 3], dark writing on light ground.
      mask: bool [h, w]; None without a region backend.
      max_pixels: see `images.resize_page`.
      inverted: see `View`.
    """
    for factor in factors:
        try:
            resized = resize_page(image, factor, max_pixels)
            inside = None if mask is None else resize_mask(mask, resized.shape[:2])
            view = View(resized, inside, inverted)
        except PageError as error:
            view = PageError(one_line(error))
        yield view
