"""One pass over a page: keypoints are found once, and windows of all scales are cut from that page.

The published rules resize the page for each scale, then binarise it and find keypoints on it. SIFT
on an enlarged page takes seconds. Here the page is binarised and keypoints are found at one size,
and the windows of each scale are cut at these keypoints.

Axes: n keypoints, s side of a patch, h w c page height, width, channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from saghog_jax.input_pipeline.cutting import binarize, keypoints
from saghog_jax.input_pipeline.cutting.keypoints import Keypoints
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule, crops, pick, window_fraction

# Resized pages of up to _WHOLE pixels are made, which is faster; windows of larger ones are
# resampled one by one, _WINDOWS at a time (OpenCV's maps have at most 32,767 rows).
_WHOLE = 40_000_000
_WINDOWS = 512
# SIFT assumes a page blurred by half a pixel, which doubling makes 1. A smaller blur of the first
# octave would smooth nothing, and grain would give keypoints.
_LEAST_SIGMA = 1.0
# Least difference between the mean grey values of paper and ink in which keypoints are found: that
# of the collections on which the recipe was chosen.
_CLEAR = 170


class _Detected(NamedTuple):
    """A page at the size at which it is binarised and keypoints are found.

    factor: of that size to the page as it was read.
    sigma: blur of SIFT's first octave, in pixels of that size.
    grey, ink: uint8 [h, w].
    points: all keypoints.
    rows: int [n], one keypoint a pixel, sorted by x, then y.
    x, y: int [n], pixels of these keypoints at that size.
    """

    factor: float
    sigma: float
    grey: np.ndarray
    ink: np.ndarray
    points: Keypoints
    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray


def cut_scales(
    image: np.ndarray,
    rule: Rule,
    factors: Sequence[float],
    seeds: Sequence[int],
    mask: np.ndarray | None = None,
    colours: bool = True,
) -> list[Cut]:
    """Cuts the patches of a page at several scales.

    Keypoints are found on the page resized by `rule.detect_scale` or by the largest of `factors`,
    whichever is smaller. `rule.sift_sigma` counts in pixels of the page resized by the first
    factor. A keypoint has the same SIFT descriptor at all scales.

    Args:
      image: uint8 [h, w, 3], RGB, as it was read; `rule.scale` is not applied.
      rule: how to cut; `rule.detect_scale` is above 0.
      factors: of each scale, `rule.scale` included.
      seeds: of the random choice at each scale, if `rule.pick` is `random`.
      mask: bool [h, w]; keypoints outside of the mask are left out.
      colours: False leaves the colours of the patches out (`Cut.patches` has no channel), which a
        model that reads ink does not need.

    Returns:
      the patches at each scale; x and y are pixels of the page resized by its factor.
    """
    detected = _detect(image, rule, factors, mask)
    # Channels that are resampled together: the page, and what tells ink from paper.
    paper = _paper(image, rule, detected)
    page = np.dstack([image, paper]) if colours else paper[:, :, None]
    chosen = [
        _choose(detected, rule, factor, seed, page.shape)
        for factor, seed in zip(factors, seeds, strict=True)
    ]
    descriptors = _describe(detected, rule, chosen) if rule.descriptors else [None] * len(chosen)
    return [
        _cut(page, rule, factor, detected, at, described)
        for factor, at, described in zip(factors, chosen, descriptors, strict=True)
    ]


def _detect(
    image: np.ndarray, rule: Rule, factors: Sequence[float], mask: np.ndarray | None
) -> _Detected:
    factor = min(rule.detect_scale, max(factors))
    # The same part of a stroke, whatever the size of the page.
    sigma = max(_LEAST_SIGMA, rule.sift_sigma * factor / factors[0])
    grey = _resize(binarize.to_grey(image, rule.grey), factor)
    ink = binarize.ink_mask(grey, rule.binarization)
    searched = (1 - ink) * 255 if rule.detect_on == "binary" else _clear(grey, ink)
    points = keypoints.detect(searched, sigma, small_tiles=True)
    x, y = points.positions.astype(np.int64).T
    _, rows = np.unique(x * ink.shape[0] + y, return_index=True)
    if rule.keypoint_on_ink:
        rows = rows[ink[y[rows], x[rows]] == 1]
    if mask is not None:
        inside = cv2.resize(mask.astype(np.uint8), ink.shape[::-1], interpolation=cv2.INTER_NEAREST)
        rows = rows[inside[y[rows], x[rows]] == 1]
    return _Detected(factor, sigma, grey, ink, points, rows, x[rows], y[rows])


def _clear(grey: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """The grey page, with more contrast if its ink is faint.

    SIFT drops keypoints of little contrast, so that a page of faint ink would have none.

    Args:
      grey, ink: uint8 [h, w].
    """
    inside = ink == 1
    if not inside.any() or inside.all():
        return grey
    dark, light = float(grey[inside].mean()), float(grey[~inside].mean())
    if light - dark >= _CLEAR:
        return grey
    # Around the middle of both, so that neither is cut off.
    values = 127.5 + (np.arange(256) - (dark + light) / 2) * (_CLEAR / max(light - dark, 1.0))
    return cv2.LUT(grey, values.round().clip(0, 255).astype(np.uint8))


def _resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Resizes an image: areas are averaged where it shrinks, else cubic interpolation."""
    if factor == 1:
        return image
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    if round(min(image.shape[:2]) * factor) < 1:
        return cv2.resize(image, _scaled(image.shape, factor)[::-1], interpolation=method)
    # Not by the rounded size: a pixel keeps the side 1 / factor.
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


def _paper(image: np.ndarray, rule: Rule, detected: _Detected) -> np.ndarray:
    """Uint8 [h, w]: at most 127 on ink, also after resampling.

    For Otsu's threshold these are grey values, so that a resampled stroke has a smooth edge. The
    local methods have no threshold for a window alone; their mask is resampled.
    """
    if rule.binarization != "otsu":
        h, w = image.shape[:2]
        return cv2.resize((1 - detected.ink) * 255, (w, h), interpolation=cv2.INTER_LINEAR)
    dark = detected.grey[detected.ink == 1]
    threshold = int(dark.max()) if dark.size else -1
    # The threshold becomes 127; a lower contrast of the ink or of the paper does not matter.
    shifted = np.arange(256) - threshold + 127
    return cv2.LUT(binarize.to_grey(image, rule.grey), shifted.clip(0, 255).astype(np.uint8))


def _choose(
    detected: _Detected, rule: Rule, factor: float, seed: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Numbers of the keypoints that give a patch at a scale: int64, ascending."""
    s, black = rule.patch_size, rule.border == "black"
    # The side of a window at the size at which keypoints were found, an even number of pixels.
    side = max(2, 2 * round(s * detected.factor / factor / 2))
    fraction = window_fraction(detected.ink, detected.x, detected.y, side, outside=black)
    keep = (rule.min_ink <= fraction) & (fraction <= rule.max_ink)
    if rule.border == "drop":
        x, y = _places(detected, factor, shape)
        h, w = _scaled(shape, factor)
        keep &= (x > s // 2) & (x < w - s // 2) & (y > s // 2) & (y < h - s // 2)
    rows = np.flatnonzero(keep)
    return rows[pick(len(rows), rule, seed)]


def _scaled(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Height and width of a page resized by a factor."""
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _places(
    detected: _Detected, factor: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels x, y of the keypoints on the page resized by a factor: int64 [n]."""
    h, w = _scaled(shape, factor)
    positions = detected.points.positions[detected.rows].astype(np.float64)
    x, y = np.floor((positions + 0.5) * (factor / detected.factor) - 0.5).astype(np.int64).T
    return x.clip(0, w - 1), y.clip(0, h - 1)


def _describe(detected: _Detected, rule: Rule, chosen: Sequence[np.ndarray]) -> list[np.ndarray]:
    """SIFT descriptors at each scale, uint8 [n, 128]; a keypoint is described once."""
    union = np.unique(np.concatenate(list(chosen)))
    described = keypoints.describe(
        detected.grey, detected.points, detected.rows[union], detected.sigma, small_tiles=True
    )
    return [described[np.searchsorted(union, rows)] for rows in chosen]


def _cut(
    page: np.ndarray,
    rule: Rule,
    factor: float,
    detected: _Detected,
    rows: np.ndarray,
    descriptors: np.ndarray | None,
) -> Cut:
    x, y = (axis[rows] for axis in _places(detected, factor, page.shape))
    black = rule.border == "black"
    cut = windows(page, factor, x, y, rule.patch_size, fill=0 if black else 255)
    ink = (cut[..., -1] < 128).astype(np.uint8)
    return Cut(
        patches=np.ascontiguousarray(cut[..., :-1]),
        ink=np.packbits(ink.reshape(len(rows), rule.patch_size**2), axis=1),
        x=x.astype(np.int32),
        y=y.astype(np.int32),
        descriptors=descriptors,
    )


def windows(
    page: np.ndarray, factor: float, x: np.ndarray, y: np.ndarray, s: int, fill: int
) -> np.ndarray:
    """The windows that `patches.crops` cuts from the page resized by a factor.

    A resized page that needs too much memory is not made; its windows are resampled one by one.

    Args:
      page: uint8 [h, w, c].
      x, y: int [n], pixels of the resized page.
      s: side of a window in pixels of the resized page.
      fill: value of the pixels outside of the page.

    Returns:
      uint8 [n, s, s, c].
    """
    h, w = _scaled(page.shape, factor)
    if factor <= 1 or h * w <= _WHOLE:
        # OpenCV drops a single channel, so it is left out and added again.
        resized = _resize(np.squeeze(page, 2) if page.shape[2] == 1 else page, factor)
        return crops(resized, x, y, s, fill).reshape(len(x), s, s, page.shape[2])
    around = np.arange(s) - s // 2
    columns, lines = x[:, None] + around, y[:, None] + around
    cut = np.empty((len(x), s, s, page.shape[2]), np.uint8)
    for first in range(0, len(x), _WINDOWS):
        part = slice(first, first + _WINDOWS)
        # The middle of a pixel of the resized page, in pixels of the page.
        across, down = ((line[part] + 0.5) / factor - 0.5 for line in (columns, lines))
        n = len(across)
        maps = np.broadcast_arrays(
            across[:, None, :].astype(np.float32), down[:, :, None].astype(np.float32)
        )
        cut[part] = cv2.remap(
            page,
            *(np.ascontiguousarray(axis).reshape(n * s, s) for axis in maps),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        ).reshape(n, s, s, -1)
    outside = [(line < 0) | (line >= side) for line, side in ((lines, h), (columns, w))]
    cut[outside[0][:, :, None] | outside[1][:, None, :]] = fill
    return cut
