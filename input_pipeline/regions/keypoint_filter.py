"""Pages with too little handwriting: SIFT keypoints counted in the mask of a page.

As published, keypoints are those of the page's edges (Canny, thresholds 100 and 200, no blur). How
many there are depends on the resolution, so they are counted at a stated one.
"""

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.cutting.keypoints import detect
from saghog_jax.input_pipeline.errors import UserError, check_choice

_ON = ("page", "masked")
_CANNY = (100, 200)
_SIGMA = 1.6


def check(regions: ConfigDict) -> None:
    """Raises UserError where a field of the filter is out of its range."""
    check_choice("regions.keypoints_on", regions.keypoints_on, _ON)
    for name in ("min_keypoints", "keypoints_side"):
        if regions[name] < 0:
            raise UserError(f"regions.{name}={regions[name]} must not be negative")


def name(regions: ConfigDict) -> str:
    """What a count is called in the file about a mask; equal names are equal counts."""
    return f"{regions.keypoints_on}@{regions.keypoints_side or 'full'}"


def count(image: np.ndarray, mask: np.ndarray, regions: ConfigDict) -> int:
    """Counts the keypoints of a page that lie in its mask.

    Args:
      image: uint8 [h, w, 3], RGB.
      mask: bool [h, w].
      regions: `keypoints_side`, the longer side that larger pages are first shrunk to (0: none
        is), and `keypoints_on`: `page`, or `masked`, the page made black outside of the mask, whose
        border then has keypoints too, on both its sides, as in the published code.
    """
    grey = to_grey(image, "opencv")
    inside = mask.astype(np.uint8)
    factor = regions.keypoints_side / max(grey.shape) if regions.keypoints_side else 1.0
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in grey.shape[::-1])
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    if regions.keypoints_on == "masked":
        grey = grey * inside
    x, y = detect(cv2.Canny(grey, *_CANNY), _SIGMA).positions.astype(np.int64).T
    return len(x) if regions.keypoints_on == "masked" else int(inside[y, x].sum())
