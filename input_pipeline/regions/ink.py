"""Detects handwriting without learned weights: ink by local contrast, letters by size, text blocks.

Steps on the shrunken page: the bright sheet is separated from a dark background, if there is one;
Sauvola's threshold finds ink; straight ruled lines are removed; connected components give the size
of the letters, and components that are much larger or smaller (stamps, frames, miniatures, specks)
are dropped; the remaining components are joined into blocks; blocks with little ink are dropped.
Lengths are measured in letter heights, so the result does not depend on the scale. Rows and columns
are treated alike, so it does not depend on quarter turns.

A page is shrunk until its longer side has `side` pixels. A long image (a roll, a panorama) counts
as a row of ordinary pages, each of which has this size. If letters are too small in the shrunken
page, as on a large sheet with small writing, the search is repeated at a larger scale, at which
letters have the height they have on an ordinary page. Lengths that depend on the size of a page are
then those of an ordinary page.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult

VERSION = 3
# An image whose longer side is at most so many times its shorter side is one page.
_LONG = 2.5
# The letter height in pixels of the shrunken page below which the search is repeated, and that at
# which it is repeated.
_LEAST_HEIGHT, _HEIGHT = 8, 16
# Longer side / shorter side of an ordinary page.
_ORDINARY = 1.4
# Without letters the search is repeated only if at least this fraction of the page is ink.
_SOME_INK = 0.0005
# Side in pixels of the tiles in which the threshold is computed, to save memory.
_TILE = 2048
# Fractions of the shorter side of a page: the window of Sauvola's threshold, and the shortest
# straight line that counts as a ruled line.
_WINDOW = 1 / 20
_RULE = 1 / 12
# Side of the closing that bridges gaps in a ruled line, in pixels.
_BREAK = 3


def make(section: ConfigDict) -> Backend:
    """Creates the backend `ink` from the section `config.regions.ink`.

    Raises:
      UserError: a field is out of its range.
    """
    if section.side < 200:
        raise UserError(f"regions.ink.side={section.side} must be at least 200 pixels")
    for name in ("k", "gap"):
        if not section[name] > 0:
            raise UserError(f"regions.ink.{name}={section[name]} must be positive")
    if not 0 <= section.min_share < 1:
        raise UserError(f"regions.ink.min_share={section.min_share} must be in [0, 1)")
    parameters = section.to_dict()

    def find(image: np.ndarray, place: Place) -> RegionResult:
        del place
        return find_ink(image, **parameters)

    return Backend("ink", VERSION, parameters, find)


class _Letters(NamedTuple):
    """The result of a search on a page resized by `factor`: letters uint8 [h, w], their height."""

    letters: np.ndarray
    height: float
    factor: float


def find_ink(image: np.ndarray, side: int, k: float, gap: float, min_share: float) -> RegionResult:
    """Detects handwriting on a page.

    Args:
      image: uint8 [h, w, 3], RGB.
      side: larger pages are shrunk until their longer side has this many pixels; a long image until
        this is the longer side of its parts that are like a page; less if letters are too small.
      k: parameter of Sauvola's threshold.
      gap: widest gap that is closed, in letter heights.
      min_share: smallest fraction of the page's ink in a block; of a larger image, of the ink on an
        area of `side` times `side` pixels of the shrunken image.

    Returns:
      the mask; the fraction of the ink in each block; the letter height in pixels of the image.
    """
    h, w = image.shape[:2]
    grey = to_grey(image, "opencv")
    found = _search(grey, side, k)
    if not found.height:
        return RegionResult(np.zeros((h, w), bool), (), {"letter_height": 0.0})
    pages = max(1.0, found.letters.size / side**2)
    blocks, fractions = join_blocks(found.letters, found.height, gap, min_share / pages)
    mask = cv2.resize(blocks, (w, h), interpolation=cv2.INTER_NEAREST) > 0
    return RegionResult(mask, fractions, {"letter_height": round(found.height / found.factor, 1)})


def _search(grey: np.ndarray, side: int, k: float) -> _Letters:
    """Looks for letters at the scale of an ordinary page, then at larger ones if they are small."""
    short, long = sorted(grey.shape)
    # A long image is cut into equal parts in thought, each no longer than an ordinary page.
    part = long / max(1, math.ceil(long / short / _LONG))
    factor = min(1.0, side / part)
    shrunk = _shrink(grey, factor)
    paper = sheet(shrunk, side)
    width = min(shrunk.shape)
    found: _Letters | None = None
    while True:
        letters, height, some = _letters(shrunk, paper, k, width, side)
        if height or found is None:
            found = _Letters(letters, height, factor)
        if factor == 1 or height >= _LEAST_HEIGHT or not (height or some):
            return found
        factor = min(1.0, factor * max(_HEIGHT / height if height else 2.0, 1.25))
        shrunk = _shrink(grey, factor)
        width = min(*shrunk.shape, round(side / _ORDINARY))


def _shrink(grey: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return grey
    size = [max(1, round(side * factor)) for side in grey.shape[::-1]]
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def _letters(
    grey: np.ndarray, paper: np.ndarray, k: float, width: int, side: int
) -> tuple[np.ndarray, float, bool]:
    """See `keep_letters`; the third value says whether there is some ink besides ruled lines."""
    if paper.shape != grey.shape:
        paper = cv2.resize(paper, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    ink = remove_ruled_lines(sauvola(grey, k, width) & paper, width)
    letters, height = keep_letters(ink, side)
    return letters, height, bool(ink.mean() >= _SOME_INK)


def sauvola(grey: np.ndarray, k: float, width: int) -> np.ndarray:
    """Ink, uint8 [h, w] of 0 and 1, by Sauvola's threshold m (1 + k (s / 128 - 1)).

    Uses box filters, which are several times as fast as doxapy (used to cut patches).

    Args:
      grey: uint8 [h, w].
      k: parameter of the threshold.
      width: shorter side of an ordinary page in pixels; the window is a fraction of it.
    """
    window = max(15, round(width * _WINDOW)) | 1
    ink = np.empty_like(grey)
    h, w = grey.shape
    for top in range(0, h, _TILE):
        for left in range(0, w, _TILE):
            y0, x0 = max(0, top - window), max(0, left - window)
            part = grey[y0 : top + _TILE + window, x0 : left + _TILE + window]
            found = _sauvola(part, k, window)[top - y0 :, left - x0 :]
            tile = ink[top : top + _TILE, left : left + _TILE]
            tile[:] = found[: tile.shape[0], : tile.shape[1]]
    return ink


def _sauvola(grey: np.ndarray, k: float, window: int) -> np.ndarray:
    values = grey.astype(np.float32)
    mean = cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT)
    square = cv2.sqrBoxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT)
    deviation = cv2.sqrt(np.maximum(square - mean * mean, 0))
    return (values <= mean * (1 + k * (deviation / 128 - 1))).view(np.uint8)


def sheet(grey: np.ndarray, side: int) -> np.ndarray:
    """The sheet, uint8 [h, w] of 0 and 1: all pixels except dark areas that reach the image border.

    All ones if no area is much darker than the paper.

    Args:
      grey: uint8 [h, w].
      side: longer side of an ordinary page in pixels, if the image is larger.
    """
    factor = 400 / min(max(grey.shape), side)
    size = [max(8, round(n * factor)) for n in grey.shape[::-1]]
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    # The closing removes writing, whose strokes are thinner than the square, and keeps the ground.
    ground = cv2.morphologyEx(small, cv2.MORPH_CLOSE, np.ones((13, 13), np.uint8))
    dark = cv2.threshold(ground, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1]
    if not dark.any() or dark.all():
        return np.ones_like(grey)
    if ground[dark == 1].mean() > 0.6 * ground[dark == 0].mean():
        return np.ones_like(grey)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    areas = np.setdiff1d(border, 0)
    # Dark areas that span less than half of a side belong to the writing or to a drawing.
    spans = (stats[areas, 2:4] >= 0.5 * np.array(dark.shape[::-1])).any(axis=1)
    background = np.isin(labels, areas[spans]).astype(np.uint8)
    # The edge of the background is neither background nor paper.
    background = cv2.dilate(background, np.ones((7, 7), np.uint8))
    return 1 - cv2.resize(background, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)


def remove_ruled_lines(ink: np.ndarray, width: int) -> np.ndarray:
    """The ink without straight lines parallel to the page's sides, and without solid areas.

    Args:
      ink: uint8 [h, w] of 0 and 1.
      width: shorter side of an ordinary page in pixels.
    """
    # At least the longest straight stroke of a letter in a small image.
    length = max(60, round(width * _RULE))
    lines = np.zeros_like(ink)
    for turn in (1, -1):
        # A faint line has many gaps. With the gaps closed, small letters in a row look like a line
        # too, so the line must be longer.
        closed = cv2.morphologyEx(ink, cv2.MORPH_CLOSE, np.ones((1, _BREAK)[::turn], np.uint8))
        for image, least in ((ink, length), (closed, 2 * length)):
            line = np.ones((1, least)[::turn], np.uint8)
            lines |= cv2.morphologyEx(image, cv2.MORPH_OPEN, line)
    return ink & (1 - cv2.dilate(lines, np.ones((3, 3), np.uint8)))


def keep_letters(ink: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The components of the ink that can be writing, and the letter height in pixels (0: none).

    The height is the median of the components' shorter sides, weighted by the square root of their
    ink, so that neither many specks nor one large drawing dominates.

    Args:
      ink: uint8 [h, w] of 0 and 1.
      side: longer side of an ordinary page in pixels, if the image is larger.
    """
    largest = min(max(ink.shape), side)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    left, top, width, height, area = stats.T
    short, long = np.minimum(width, height), np.maximum(width, height)
    h, w = ink.shape
    at_border = (left == 0) | (top == 0) | (left + width == w) | (top + height == h)
    fill = area / (width * height)
    # Like strokes: neither specks nor blots.
    keep = (long >= 5) & (area >= 8) & ~((short < 4) & (long > 12 * short))
    keep &= ~(at_border & (long > 0.25 * largest))
    keep &= ~((fill > 0.7) & (short > 0.02 * largest))
    keep[0] = False
    if not keep.any():
        return np.zeros_like(ink), 0.0
    scale = _weighted_median(short[keep], np.sqrt(area[keep]))
    keep &= (long > 0.5 * scale) & (short < 8 * scale)
    # Remains of ruled lines that were not quite straight, or broken.
    keep &= ~((short < 0.35 * scale) & (long > 6 * short))
    keep &= ~((fill > 0.6) & (short > 3 * scale))
    return keep[labels].astype(np.uint8), float(scale)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def join_blocks(
    letters: np.ndarray, height: float, gap: float, min_share: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Blocks of writing, uint8 [h, w] of 0 and 1, and the fraction of the ink in each block."""
    # On a small image, where a letter is 6 pixels high, large squares are fast.
    factor = min(1.0, 6 / height)
    size = [max(1, round(n * factor)) for n in letters.shape[::-1]]
    small = cv2.resize(letters * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    # Every letter counts, but a single letter must not bridge a gap.
    dots = (small > 25).astype(np.uint8)
    unit = height * factor
    margin = round(gap * unit) + 1
    padded = cv2.copyMakeBorder(dots, *(margin,) * 4, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _square(gap * unit))
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, _square(0.8 * unit))
    closed = closed[margin:-margin, margin:-margin]
    n, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    ink = np.bincount(labels.ravel(), weights=small.ravel(), minlength=n)
    fractions = ink / max(ink[1:].sum(), 1)
    keep = (fractions >= min_share) & (stats[:, 2:4].max(axis=1) >= 2 * unit)
    keep[0] = False
    blocks = cv2.dilate(keep[labels].astype(np.uint8), _square(2 * 0.6 * unit))
    blocks = _fill_holes(blocks, (8 * unit) ** 2)
    blocks = cv2.resize(blocks, letters.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return blocks, tuple(round(float(s), 4) for s in sorted(fractions[keep], reverse=True))


def _square(side: float) -> np.ndarray:
    odd = max(1, round(side)) | 1
    return np.ones((odd, odd), np.uint8)


def _fill_holes(blocks: np.ndarray, largest: float) -> np.ndarray:
    """Fills holes of at most `largest` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - blocks, connectivity=4)
    h, w = blocks.shape
    left, top, width, height, area = stats.T
    inside = (left > 0) & (top > 0) & (left + width < w) & (top + height < h)
    hole = inside & (area <= largest)
    hole[0] = False
    return blocks | hole[labels].astype(np.uint8)
