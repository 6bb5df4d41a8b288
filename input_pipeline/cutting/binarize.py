"""Grey conversion and binarisation: from an RGB page to a mask of its ink.

Axes: h, w, c image height, width, channels. Masks are uint8 [h, w], 1 = ink, 0 = paper.
"""

import cv2
import doxapy
import numpy as np
from PIL import Image

from saghog_jax.input_pipeline.errors import check_choice

GREYS = ("pillow", "opencv")
BINARIZATIONS = ("isauvola", "sauvola", "su", "otsu")

# Window and k as in the paper. With zeros, Su's method derives its parameters from the strokes.
_PARAMETERS = {
    "isauvola": {"window": 75, "k": 0.2},
    "sauvola": {"window": 75, "k": 0.2},
    "su": {"window": 0, "minN": 0},
}


def to_grey(image: np.ndarray, method: str) -> np.ndarray:
    """Converts a page to grey.

    Args:
      image: uint8 [h, w, 3], RGB.
      method: `pillow` (as in the published samplers) or `opencv` (as in the published extraction
        scripts). Both use the weights .299, .587, .114; they round about 0.1 % of the pixels
        differently.

    Returns:
      uint8 [h, w], contiguous.

    Raises:
      UserError: unknown method.
      ValueError: not a uint8 RGB image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a page is uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    check_choice("grey conversion", method, GREYS)
    if method == "pillow":
        return np.array(Image.fromarray(np.ascontiguousarray(image)).convert("L"))
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def ink_mask(grey: np.ndarray, method: str) -> np.ndarray:
    """Separates ink from paper.

    The local methods (all but `otsu`) treat a uniform area as paper, even a black one. Otsu's
    threshold is global: pixels above it are paper.

    Args:
      grey: uint8 [h, w].
      method: `isauvola`, `sauvola`, `su` or `otsu`.

    Returns:
      uint8 [h, w], 1 = ink.

    Raises:
      UserError: unknown method.
      ValueError: not a two-dimensional uint8 array.
    """
    if grey.ndim != 2 or grey.dtype != np.uint8:
        raise ValueError(f"a grey page is uint8 [h, w], got {grey.dtype} {list(grey.shape)}")
    check_choice("binarisation", method, BINARIZATIONS)
    if method == "otsu":
        return cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1]
    h, w = grey.shape
    # doxapy writes outside of its buffers if a side is shorter than half of the window.
    window = _PARAMETERS[method]["window"]
    short = [window - side if side < window // 2 else 0 for side in (h, w)]
    padded = np.pad(grey, [(0, short[0]), (0, short[1])], mode="symmetric")
    # doxapy misreads any other memory layout, without an error.
    padded = np.ascontiguousarray(padded)
    binarization = doxapy.Binarization(
        getattr(doxapy.Binarization.Algorithms, method.upper()),
    )
    binarization.initialize(padded)
    paper = np.empty_like(padded)
    binarization.to_binary(paper, _PARAMETERS[method])
    return (paper[:h, :w] == 0).astype(np.uint8)
