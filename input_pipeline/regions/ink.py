"""Detects handwriting without learned weights: ink by local contrast, letters by size, text blocks.

Steps on the shrunken page: the bright sheet is separated from a dark background, if there is one;
Sauvola's threshold finds ink; straight ruled lines are removed; connected components give the size
of the letters, and components that are much larger or smaller (stamps, frames, miniatures, specks)
are dropped; the remaining components are joined into blocks; blocks with little ink are dropped.
Lengths are measured in letter heights, so the result does not depend on the scale. Rows and columns
are treated alike, so it does not depend on quarter turns.
"""

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult

VERSION = 2
# Fractions of the page's shorter side: the window of Sauvola's threshold, and the shortest straight
# line that counts as a ruled line.
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


def find_ink(image: np.ndarray, side: int, k: float, gap: float, min_share: float) -> RegionResult:
    """Detects handwriting on a page.

    Args:
      image: uint8 [h, w, 3], RGB.
      side: larger pages are shrunk until their longer side has this many pixels.
      k: parameter of Sauvola's threshold.
      gap: widest gap that is closed, in letter heights.
      min_share: smallest fraction of the page's ink in a block.

    Returns:
      the mask; the fraction of the ink in each block; the letter height in pixels of the image.
    """
    h, w = image.shape[:2]
    grey = to_grey(image, "opencv")
    factor = min(1.0, side / max(h, w))
    if factor < 1:
        size = max(1, round(w * factor)), max(1, round(h * factor))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    ink = sauvola(grey, k) & sheet(grey)
    letters, height = keep_letters(remove_ruled_lines(ink))
    if not height:
        return RegionResult(np.zeros((h, w), bool), (), {"letter_height": 0.0})
    blocks, fractions = join_blocks(letters, height, gap, min_share)
    mask = cv2.resize(blocks, (w, h), interpolation=cv2.INTER_NEAREST) > 0
    return RegionResult(mask, fractions, {"letter_height": round(height / factor, 1)})


def sauvola(grey: np.ndarray, k: float) -> np.ndarray:
    """Ink, uint8 [h, w] of 0 and 1, by Sauvola's threshold m (1 + k (s / 128 - 1)).

    Uses box filters, which are several times as fast as doxapy (used to cut patches).
    """
    window = max(15, round(min(grey.shape) * _WINDOW)) | 1
    values = grey.astype(np.float32)
    mean = cv2.boxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT)
    square = cv2.sqrBoxFilter(values, -1, (window, window), borderType=cv2.BORDER_REFLECT)
    deviation = cv2.sqrt(np.maximum(square - mean * mean, 0))
    return (values <= mean * (1 + k * (deviation / 128 - 1))).view(np.uint8)


def sheet(grey: np.ndarray) -> np.ndarray:
    """The sheet, uint8 [h, w] of 0 and 1: all pixels except dark areas that reach the image border.

    All ones if no area is much darker than the paper.
    """
    factor = 400 / max(grey.shape)
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


def remove_ruled_lines(ink: np.ndarray) -> np.ndarray:
    """The ink without straight lines parallel to the page's sides, and without solid areas."""
    # At least the longest straight stroke of a letter in a small image.
    length = max(60, round(min(ink.shape) * _RULE))
    lines = np.zeros_like(ink)
    for turn in (1, -1):
        # A faint line has many gaps. With the gaps closed, small letters in a row look like a line
        # too, so the line must be longer.
        closed = cv2.morphologyEx(ink, cv2.MORPH_CLOSE, np.ones((1, _BREAK)[::turn], np.uint8))
        for image, least in ((ink, length), (closed, 2 * length)):
            line = np.ones((1, least)[::turn], np.uint8)
            lines |= cv2.morphologyEx(image, cv2.MORPH_OPEN, line)
    return ink & (1 - cv2.dilate(lines, np.ones((3, 3), np.uint8)))


def keep_letters(ink: np.ndarray) -> tuple[np.ndarray, float]:
    """The components of the ink that can be writing, and the letter height in pixels (0: none).

    The height is the median of the components' shorter sides, weighted by the square root of their
    ink, so that neither many specks nor one large drawing dominates.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    left, top, width, height, area = stats.T
    short, long = np.minimum(width, height), np.maximum(width, height)
    h, w = ink.shape
    at_border = (left == 0) | (top == 0) | (left + width == w) | (top + height == h)
    fill = area / (width * height)
    # Like strokes: neither specks nor blots.
    keep = (long >= 5) & (area >= 8) & ~((short < 4) & (long > 12 * short))
    keep &= ~(at_border & (long > 0.25 * max(h, w)))
    keep &= ~((fill > 0.7) & (short > 0.02 * max(h, w)))
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
