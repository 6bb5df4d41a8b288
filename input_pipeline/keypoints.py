"""SIFT keypoints and descriptors, and keypoints read from files."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.errors import PageError

_OCTAVE_LAYERS = 3


class Keypoints(NamedTuple):
    """Keypoints of a page: positions in pixels, float32 [n, 2] (x, y), and OpenCV's objects."""

    positions: np.ndarray
    objects: Sequence[cv2.KeyPoint]


def detect(grey: np.ndarray, sigma: float) -> Keypoints:
    """Detects SIFT keypoints on a grey or binary image, uint8 [h, w]; none is a fine answer.

    OpenCV's defaults but for `sigma`, the blur of the first octave in pixels (1.6 by default).
    """
    objects = cv2.SIFT_create(sigma=sigma).detect(grey, None)
    # Without keypoints OpenCV gives an empty tuple.
    positions = cv2.KeyPoint_convert(objects) if objects else np.zeros((0, 2), np.float32)
    return Keypoints(positions, objects)


def describe(grey: np.ndarray, keypoints: Keypoints, chosen: np.ndarray) -> np.ndarray:
    """Computes SIFT descriptors at some of the keypoints, with their scale and angle.

    A descriptor does not depend on which other keypoints are chosen.

    Args:
      grey: uint8 [h, w], the image described (not necessarily the one the keypoints are from).
      keypoints: of the page.
      chosen: int [n], rows of `keypoints`.

    Returns:
      uint8 [n, 128]: OpenCV's descriptors, whose floats hold whole numbers from 0 to 255.
    """
    if not len(chosen):
        return np.zeros((0, 128), np.uint8)
    # OpenCV builds its pyramid from the lowest octave asked for, and blurs differently where
    # that is not the doubled image; one keypoint of it keeps the pyramid the same.
    lowest = min(keypoints.objects, key=lambda keypoint: _octave(keypoint.octave))
    objects = [*(keypoints.objects[i] for i in chosen), lowest]
    _, descriptors = cv2.SIFT_create().compute(grey, objects)
    return descriptors[:-1].astype(np.uint8)


def from_table(table: np.ndarray, sigma: float) -> Keypoints:
    """Makes keypoints of a table, for positions that were found elsewhere.

    Args:
      table: float [n, 2] (x, y), or [n, 4] (x, y, size, angle) with the diameter in pixels and
        the angle in degrees, as OpenCV means them. Without them: a diameter of 4 sigma, upright.
      sigma: blur of the first octave; with the size it says at which level of the pyramid a
        descriptor is computed.
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
      PageError: missing or unreadable file, missing column, a cell that is no number.
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
    """The octave in OpenCV's packed field: its lowest byte, signed."""
    return (packed & 255) - 256 if packed & 128 else packed & 255


def _pack_octave(size: float, sigma: float) -> int:
    """OpenCV's packed octave and layer of a keypoint of this size (octave -1 is doubled)."""
    level = max(1, round(_OCTAVE_LAYERS * math.log2(size / sigma)))
    octave = (level - 1) // _OCTAVE_LAYERS
    layer = level - octave * _OCTAVE_LAYERS
    return ((octave - 1) & 255) | (layer << 8)
