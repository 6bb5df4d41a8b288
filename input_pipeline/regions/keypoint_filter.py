"""Counts the SIFT keypoints in the mask of a page, to skip pages with too little handwriting.

As in the published code, keypoints are detected on the edges of the page (Canny, thresholds 100 and
200, no blur). Their number depends on the resolution, so the config states the resolution.
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
    """Raises UserError if a field of the filter is out of its range."""
    check_choice("regions.keypoints_on", regions.keypoints_on, _ON)
    for name in ("min_keypoints", "keypoints_side"):
        if regions[name] < 0:
            raise UserError(f"regions.{name}={regions[name]} must not be negative")


def name(regions: ConfigDict) -> str:
    """Name of a count in the JSON file of a mask; the same name means the same way of counting."""
    return f"{regions.keypoints_on}@{regions.keypoints_side or 'full'}"


def count(image: np.ndarray, mask: np.ndarray, regions: ConfigDict) -> int:
    """Counts the keypoints of a page that lie in its mask.

    Args:
      image: uint8 [h, w, 3], RGB.
      mask: bool [h, w].
      regions: the fields `keypoints_side` and `keypoints_on`. Larger pages are first shrunk until
        their longer side has `keypoints_side` pixels (0: pages are not shrunk). With
        `keypoints_on` = `page` keypoints are detected on the whole page. With `masked` the page is
        made black outside of the mask; then both sides of the mask's border have keypoints too, as
        in the published code.
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
