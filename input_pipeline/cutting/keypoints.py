"""SIFT keypoints and descriptors, and keypoints read from files."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from saghog_jax.input_pipeline.errors import PageError

_OCTAVE_LAYERS = 3
# SIFT needs 250 MB per megapixel. Pages of up to _WHOLE pixels are processed at once, larger pages
# in tiles: squares with sides of _CORE pixels and a margin of _MARGIN pixels around them, multiples
# of the octaves' steps. Whole pages and tiles gave the same positions, except for one in 10,000 at
# the seams.
_WHOLE = 12_000_000
_CORE = 3072
_MARGIN = 256
# Small tiles have at most _SMALL pixels, margins included: 400 MB. Of 26,046 keypoints of a page
# cut so, three had another position and two another descriptor.
_SMALL = 1_600_000
_SMALL_MARGIN = 128
# Steps of the sides of small tiles, multiples of the octaves' steps.
_STEP = 64


class Keypoints(NamedTuple):
    """Keypoints of a page: positions in pixels, float32 [n, 2] (x, y), and OpenCV's objects."""

    positions: np.ndarray
    objects: Sequence[cv2.KeyPoint]


class _Tile(NamedTuple):
    """A part of a page, left <= x < right and top <= y < bottom.

    view: the part with its margin, uint8 [h, w].
    offset: x, y of the view's corner on the page.
    """

    left: int
    top: int
    right: int
    bottom: int
    view: np.ndarray
    offset: tuple[int, int]

    def owns(self, positions: np.ndarray) -> np.ndarray:
        """Whether positions [n, 2] of the page lie in this tile, without its margin: bool [n]."""
        x, y = positions.T
        return (self.left <= x) & (x < self.right) & (self.top <= y) & (y < self.bottom)


def _tiles(grey: np.ndarray, small: bool) -> Iterator[_Tile]:
    h, w = grey.shape
    if h * w <= (_SMALL if small else _WHOLE):
        yield _Tile(0, 0, w, h, grey, (0, 0))
        return
    high, wide = _small_sides(h, w) if small else (_CORE, _CORE)
    margin = _SMALL_MARGIN if small else _MARGIN
    for top in range(0, h, high):
        for left in range(0, w, wide):
            right, bottom = min(left + wide, w), min(top + high, h)
            x, y = max(left - margin, 0), max(top - margin, 0)
            view = np.ascontiguousarray(grey[y : bottom + margin, x : right + margin])
            yield _Tile(left, top, right, bottom, view, (x, y))


def _small_sides(h: int, w: int) -> tuple[int, int]:
    """Height and width of small tiles without margins: those with the fewest pixels in all."""

    def sides(length: int) -> list[tuple[int, int, int]]:
        """For each number of tiles along a side: side, side with margins, all sides together."""
        found = []
        for n in range(1, -(-length // _STEP) + 1):
            side = -(-length // (n * _STEP)) * _STEP
            margins = _SMALL_MARGIN * min(2, n - 1)
            found.append((side, side + margins, length + 2 * _SMALL_MARGIN * (n - 1)))
        return found

    _, high, wide = min(
        (all_high * all_wide, high, wide)
        for high, view_high, all_high in sides(h)
        for wide, view_wide, all_wide in sides(w)
        if view_high * view_wide <= _SMALL
    )
    return high, wide


def detect(grey: np.ndarray, sigma: float, small_tiles: bool = False) -> Keypoints:
    """Detects SIFT keypoints on a grey or binary image, uint8 [h, w]; the result may be empty.

    All parameters are OpenCV's defaults except `sigma`, the blur of the first octave in pixels (1.6
    by default). With `small_tiles` at most 400 MB of memory are used; keypoints at the seams of the
    tiles may differ.
    """
    sift = cv2.SIFT_create(sigma=sigma)
    positions, objects = [np.zeros((0, 2), np.float32)], []
    for tile in _tiles(grey, small_tiles):
        detected = sift.detect(tile.view, None)
        # Without keypoints OpenCV returns an empty tuple.
        if not detected:
            continue
        points = cv2.KeyPoint_convert(detected) + np.float32(tile.offset)
        owned = tile.owns(points)
        positions.append(points[owned])
        objects += detected if owned.all() else [detected[i] for i in np.flatnonzero(owned)]
    return Keypoints(np.concatenate(positions), objects)


def describe(
    grey: np.ndarray,
    keypoints: Keypoints,
    selection: np.ndarray,
    sigma: float,
    small_tiles: bool = False,
) -> np.ndarray:
    """Computes SIFT descriptors at selected keypoints, with the keypoints' scale and angle.

    A descriptor does not depend on the other selected keypoints.

    Args:
      grey: uint8 [h, w], the image to describe (keypoints may come from another image).
      keypoints: of the page.
      selection: int [n], rows of `keypoints`.
      sigma, small_tiles: as in `detect`.

    Returns:
      uint8 [n, 128]: OpenCV's descriptors, whose floats hold whole numbers from 0 to 255.
    """
    descriptors = np.zeros((len(selection), 128), np.uint8)
    if not len(selection):
        return descriptors
    sift = cv2.SIFT_create(sigma=sigma)
    # OpenCV starts its pyramid at the lowest octave of the keypoints to describe, and blurs
    # differently if this is not the doubled image. One more keypoint, of the page's lowest octave,
    # keeps the pyramid the same for every selection.
    lowest = min((keypoint.octave for keypoint in keypoints.objects), key=_octave)
    anchor = cv2.KeyPoint(0, 0, 1, 0, 0, lowest)
    positions = keypoints.positions[selection]
    for tile in _tiles(grey, small_tiles):
        rows = np.flatnonzero(tile.owns(positions))
        if not len(rows):
            continue
        local = (positions[rows] - np.float32(tile.offset)).tolist()
        moved = [
            cv2.KeyPoint(x, y, keypoint.size, keypoint.angle, 0, keypoint.octave)
            for (x, y), keypoint in zip(local, (keypoints.objects[i] for i in selection[rows]))
        ]
        _, computed = sift.compute(tile.view, [*moved, anchor])
        descriptors[rows] = computed[:-1]
    return descriptors


def from_table(table: np.ndarray, sigma: float) -> Keypoints:
    """Creates keypoints from a table of positions.

    Args:
      table: float [n, 2] (x, y), or [n, 4] (x, y, size, angle) with the diameter in pixels and the
        angle in degrees, as in OpenCV. Without size and angle: a diameter of 4 sigma, upright.
      sigma: blur of the first octave. Sigma and size determine the level of the pyramid at which a
        descriptor is computed.

    Raises:
      PageError: the table has another shape, a number is not finite, or a size is not positive.
    """
    if table.ndim != 2 or table.shape[1] not in (2, 4):
        raise PageError(f"keypoints are x,y or x,y,size,angle, got an array {list(table.shape)}")
    if not np.isfinite(table).all() or (table[:, 2:3] <= 0).any():
        raise PageError("keypoints hold a number that is not finite, or a size that is not > 0")
    if table.shape[1] == 2:
        table = np.concatenate([table, np.tile([[4 * sigma, 0]], (len(table), 1))], axis=1)
    objects = [
        cv2.KeyPoint(x, y, size, angle, 0, _pack_octave(size, sigma))
        for x, y, size, angle in table.tolist()
    ]
    return Keypoints(table[:, :2].astype(np.float32), objects)


def read_table(path: Path) -> np.ndarray:
    """Reads keypoints of one page from a `.npy` array or a CSV with header `x,y[,size,angle]`.

    Returns:
      float64 [n, 2] or [n, 4].

    Raises:
      PageError: the file is missing or unreadable, a column is missing, or a cell is no number.
    """
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).astype(np.float64)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = [c for c in ("x", "y", "size", "angle") if c in (rows.fieldnames or [])]
            table = [[float(row[c]) for c in columns] for row in rows]
    except (OSError, ValueError, TypeError, EOFError, csv.Error) as error:
        raise PageError(f"keypoints {path.name!r}: {error}") from None
    if columns not in (["x", "y"], ["x", "y", "size", "angle"]):
        raise PageError(f"keypoints {path.name!r}: the header must be x,y or x,y,size,angle")
    return np.array(table, np.float64).reshape(len(table), len(columns))


def _octave(packed: int) -> int:
    """The octave in OpenCV's packed field: the lowest byte, signed."""
    return (packed & 255) - 256 if packed & 128 else packed & 255


def _pack_octave(size: float, sigma: float) -> int:
    """OpenCV's packed octave and layer of a keypoint of this size (octave -1: doubled image)."""
    level = max(1, round(_OCTAVE_LAYERS * math.log2(size / sigma)))
    octave = (level - 1) // _OCTAVE_LAYERS
    layer = level - octave * _OCTAVE_LAYERS
    return ((octave - 1) & 255) | (layer << 8)
