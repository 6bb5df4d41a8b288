"""A page of random strokes for tests of cutting."""

import cv2
import numpy as np


def stroke_page(grain: int = 0) -> np.ndarray:
    """Strokes in all directions up to the border, dark blue on yellowish paper, uint8 [h, w, 3].

    Args:
      grain: largest change of a value by noise.
    """
    rng = np.random.default_rng(3)
    image = np.full((150, 210, 3), (235, 225, 190), np.uint8)
    for _ in range(60):
        start, end = rng.integers(0, (210, 150), (2, 2)).tolist()
        cv2.line(image, start, end, (40, 30, 90), int(rng.integers(1, 5)), cv2.LINE_AA)
    if grain:
        image = np.clip(image + rng.integers(-grain, grain + 1, image.shape), 0, 255)
    return image.astype(np.uint8)
