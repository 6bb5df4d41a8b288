"""Cuts patches of handwriting from a page: selects keypoints and crops the page around them.

One function implements all published ways of sampling; they differ only in the fields of `Rule`.
Axes: n patches, s side of a patch, h w c page height, width, channels.
"""

from dataclasses import MISSING, dataclass, fields
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting import binarize, keypoints
from saghog_jax.input_pipeline.errors import PageError, UserError, check_choice

_CHOICES = {
    "grey": binarize.GREYS,
    "binarization": binarize.BINARIZATIONS,
    "detect_on": ("binary", "grey"),
    "keep": ("ink", "grey", "edges"),
    "border": ("white", "black", "drop"),
    "pick": ("even", "random"),
}
# Thresholds of Canny's edge detector, as in the published extraction from colour pages.
_CANNY = (30, 200)
# A pixel is black below _BLACK and white above _WHITE: grey values 0.005 and 0.995 times 255, in
# units of 1/10,000, so that the weights .2989, .587, .114 are whole numbers.
_BLACK, _WHITE = 12_750, 2_537_250


class Cut(NamedTuple):
    """The patches of one page, sorted by x, then y.

    patches: uint8 [n, s, s, 3], RGB; the keypoint is the pixel (s/2, s/2).
    ink: uint8 [n, s*s/8], the mask of ink (1) and paper (0), row-major, packed by np.packbits.
    x, y: int32 [n], the keypoint's pixel on the scaled page.
    descriptors: uint8 [n, 128], raw SIFT; None if `Rule.descriptors` is false.
    """

    patches: np.ndarray
    ink: np.ndarray
    x: np.ndarray
    y: np.ndarray
    descriptors: np.ndarray | None

    def shipped(self) -> dict[str, np.ndarray]:
        """The arrays that are sent to a device, by name; descriptors only if they exist."""
        arrays = {"patches": self.patches, "ink": self.ink}
        return arrays if self.descriptors is None else arrays | {"descriptors": self.descriptors}

    def take(self, rows: np.ndarray | slice) -> "Cut":
        """The patches in these rows."""
        return Cut(*(None if array is None else array[rows] for array in self))


@dataclass(frozen=True)
class Rule:
    """How a page is cut; `store_config` of configs/common.py describes the fields."""

    rule: str
    patch_size: int
    scale: float
    grey: str
    binarization: str
    detect_on: str
    sift_sigma: float
    keep: str
    min_ink: float
    max_ink: float
    max_black: float
    max_white: float
    min_edges: float
    keypoint_on_ink: bool
    border: str
    centre_if_empty: bool
    descriptors: bool
    pick: str
    max_patches_per_page: int
    # Not in the published code; this value changes nothing.
    detect_scale: float = 0.0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            check_choice(f"store.{name}", getattr(self, name), known)
        if self.patch_size < 4 or self.patch_size % 4:
            raise UserError(f"store.patch_size={self.patch_size} must be a multiple of 4")
        if self.max_patches_per_page < -1 or self.max_patches_per_page == 0:
            raise UserError(
                f"store.max_patches_per_page={self.max_patches_per_page} must be positive, "
                "or -1 for all"
            )
        for name in ("scale", "sift_sigma"):
            if not getattr(self, name) > 0:
                raise UserError(f"store.{name}={getattr(self, name)} must be positive")
        if self.detect_scale < 0:
            raise UserError(f"store.detect_scale={self.detect_scale} must not be negative")
        if self.detect_scale and (self.keep != "ink" or self.centre_if_empty):
            raise UserError(
                f"store.detect_scale={self.detect_scale} needs store.keep='ink' and "
                f"store.centre_if_empty=False, got {self.keep!r} and {self.centre_if_empty}"
            )
        if not 0 <= self.min_ink <= self.max_ink <= 1:
            raise UserError(
                f"store.min_ink={self.min_ink} and store.max_ink={self.max_ink} must satisfy "
                "0 <= min_ink <= max_ink <= 1"
            )

    def settings(self) -> dict[str, object]:
        """The fields that are part of digests, by name.

        Fields that newer versions added are left out while they change nothing, so that the stores
        of older versions are found.
        """
        added = {
            field.name: field.default for field in fields(self) if field.default is not MISSING
        }
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in known.items() if k not in added or v != added[k]}

    @classmethod
    def from_config(cls, store: ConfigDict) -> "Rule":
        """Reads the fields of a rule from a store section."""
        return cls(**{field.name: store[field.name] for field in fields(cls)})


def cut_page(
    image: np.ndarray,
    rule: Rule,
    page_seed: int = 0,
    table: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Cut:
    """Cuts the patches of a page.

    Args:
      image: uint8 [h, w, 3], RGB, already scaled by `rule.scale`.
      rule: how to cut.
      page_seed: seed of the random choice if `rule.pick` is `random`; unused otherwise.
      table: keypoints to use in place of detected keypoints, see keypoints.from_table.
      mask: bool [h, w]; keypoints outside of the mask are left out. Keypoints are detected on the
        whole page, so that the border of the mask gives no keypoints.

    Returns:
      the patches; none (n = 0) if the page has no handwriting.

    Raises:
      PageError: `table` is malformed or has a keypoint outside of the page.
    """
    h, w = image.shape[:2]
    s = rule.patch_size
    grey = binarize.to_grey(image, rule.grey)
    ink = binarize.ink_mask(grey, rule.binarization)
    if table is None:
        points = keypoints.detect(
            (1 - ink) * 255 if rule.detect_on == "binary" else grey, rule.sift_sigma
        )
    else:
        points = keypoints.from_table(table, rule.sift_sigma)
    x, y = points.positions.astype(np.int64).T
    if table is not None and ((x < 0) | (x >= w) | (y < 0) | (y >= h)).any():
        raise PageError(f"a keypoint lies outside of the page of {w} x {h} pixels")
    # One keypoint per pixel: the first in SIFT's order. Sorted by x, then y.
    _, rows = np.unique(x * h + y, return_index=True)
    if mask is not None:
        rows = rows[mask[y[rows], x[rows]]]
    rows = rows[_keep(image, ink, x[rows], y[rows], rule)]
    rows = rows[pick(len(rows), rule, page_seed)]
    x, y = x[rows], y[rows]
    if rule.centre_if_empty and not len(rows):
        x, y = np.array([w // 2]), np.array([h // 2])
        points = keypoints.from_table(np.array([[w // 2, h // 2]]), rule.sift_sigma)
        rows = np.array([0])
    black = rule.border == "black"
    masks = crops(ink, x, y, s, fill=int(black))
    return Cut(
        patches=crops(image, x, y, s, fill=0 if black else 255),
        ink=np.packbits(masks.reshape(len(x), s * s), axis=1),
        x=x.astype(np.int32),
        y=y.astype(np.int32),
        descriptors=keypoints.describe(grey, points, rows, rule.sift_sigma)
        if rule.descriptors
        else None,
    )


def pick(n: int, rule: Rule, page_seed: int) -> np.ndarray:
    """Selects at most `rule.max_patches_per_page` of n rows: int64, ascending.

    `even`: the i-th of m rows is floor(i * (n - 1) / (m - 1)), as in the published code.
    """
    m = n if rule.max_patches_per_page == -1 else rule.max_patches_per_page
    if n <= m:
        return np.arange(n)
    if rule.pick == "random":
        return np.sort(np.random.default_rng(page_seed).choice(n, m, replace=False))
    return np.arange(m) * (n - 1) // max(m - 1, 1)


def crops(image: np.ndarray, x: np.ndarray, y: np.ndarray, s: int, fill: int) -> np.ndarray:
    """Cuts windows [y - s/2, y + s/2) x [x - s/2, x + s/2) of an image [h, w] or [h, w, c].

    Returns:
      [n, s, s] or [n, s, s, c] of the image's dtype; pixels outside of the image are `fill`.
    """
    half = s // 2
    around = cv2.copyMakeBorder(
        image, half, half, half, half, cv2.BORDER_CONSTANT, value=(fill,) * 4
    )
    shape = (s, s, *image.shape[2:])
    windows = np.lib.stride_tricks.sliding_window_view(around, shape)
    windows = windows.reshape(*windows.shape[:2], *shape)
    return windows[y, x]


def window_fraction(
    mask: np.ndarray, x: np.ndarray, y: np.ndarray, s: int, outside: bool
) -> np.ndarray:
    """Fraction of ones in the windows of `crops`, from an integral image.

    Args:
      mask: uint8 [h, w] of zeros and ones.
      x, y: int [n], keypoints.
      s: side of the window.
      outside: whether pixels outside of the page count as ones.

    Returns:
      float64 [n].
    """
    h, w = mask.shape
    total = cv2.integral(mask)
    top, bottom = np.clip(y - s // 2, 0, h), np.clip(y + s // 2, 0, h)
    left, right = np.clip(x - s // 2, 0, w), np.clip(x + s // 2, 0, w)
    count = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    if outside:
        count = count + s * s - (bottom - top) * (right - left)
    return count / (s * s)


def _keep(
    image: np.ndarray, ink: np.ndarray, x: np.ndarray, y: np.ndarray, rule: Rule
) -> np.ndarray:
    """Whether each keypoint gives a patch, bool [n]."""
    h, w = ink.shape
    s = rule.patch_size
    black = rule.border == "black"
    if rule.keep == "ink":
        fraction = window_fraction(ink, x, y, s, outside=black)
        keep = (rule.min_ink <= fraction) & (fraction <= rule.max_ink)
    elif rule.keep == "grey":
        value = image.astype(np.int32) @ np.array([2989, 5870, 1140], np.int32)
        dark = window_fraction((value < _BLACK).astype(np.uint8), x, y, s, outside=black)
        bright = window_fraction((value > _WHITE).astype(np.uint8), x, y, s, outside=not black)
        keep = (dark < rule.max_black) & (bright < rule.max_white)
    else:
        edges = cv2.Canny(image, *_CANNY)
        keep = window_fraction(edges // 255, x, y, s, outside=False) >= rule.min_edges
    if rule.keypoint_on_ink:
        keep &= ink[y, x] == 1
    if rule.border == "drop":
        # Strictly inside, as in the published extraction scripts.
        keep &= (x > s // 2) & (x < w - s // 2) & (y > s // 2) & (y < h - s // 2)
    return keep
