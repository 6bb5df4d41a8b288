"""Reads a page and its mask, resized for cutting."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
    (view,) = open_views(root, page, max_pixels, (factor,), page_mask)
    if isinstance(view, PageError):
        raise view
    return view


def open_views(
    root: Path,
    page: Page,
    max_pixels: int,
    factors: Sequence[float],
    page_mask: PageMask | None = None,
) -> Iterator[View | PageError]:
    """Yields `open_view` for each factor, or its error; page and mask are decoded once."""
    try:
        if page_mask and page_mask.status != OK:
            raise PageError(f"{page_mask.status}: {page_mask.reason}")
        image = load_page(root / page.path, page.box, max_pixels)
        image, inverted = checked_page(image, page.polarity)
        mask = read_mask(page_mask.file) if page_mask else None
    except PageError as error:
        yield from [error] * len(factors)
        return
    yield from resized_views(image, mask, factors, max_pixels, inverted)


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
