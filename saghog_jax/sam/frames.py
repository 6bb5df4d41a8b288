"""The input of SAM's image encoder."""

import numpy as np

from saghog_jax.sam.model import PIXEL_MEAN, PIXEL_STD


def normalised(frame: np.ndarray, side: int) -> np.ndarray:
    """Normalises a frame and pads it with zeros: uint8 [h, w, 3] -> float32 [1, side, side, 3]."""
    h, w = frame.shape[:2]
    image = np.zeros((1, side, side, 3), np.float32)
    image[0, :h, :w] = (frame - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    return image
