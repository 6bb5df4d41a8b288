"""Fixed two-dimensional sine-cosine position embedding."""

import functools

import numpy as np
from jaxtyping import Float32

BASE_GRID = 16  # Coordinates are scaled so that every grid spans 16 units.


@functools.cache
def sincos_2d(width: int, grid: tuple[int, int]) -> Float32[np.ndarray, "l {width}"]:
    """Position embedding of a token grid, as the published code computes it.

    The first half of the channels encodes the column, the second half the row; each half is
    `[sin(x * omega) | cos(x * omega)]` with omega_i = 10000^(-i / (width / 4)). Coordinates are
    scaled to a grid of 16 (8 columns become 0, 2, ..., 14), unlike in the original MAE.

    Args:
      width: channels, a multiple of 4.
      grid: rows and columns.

    Returns:
      float32 [rows * columns, width], tokens in row-major order. Read-only: the array is cached.

    Raises:
      ValueError: `width` is not a positive multiple of 4.
    """
    if width <= 0 or width % 4:
        raise ValueError(f"position embedding needs a width divisible by 4, not {width}")
    rows, columns = grid
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    y, x = np.meshgrid(
        np.arange(rows) * (BASE_GRID / rows),
        np.arange(columns) * (BASE_GRID / columns),
        indexing="ij",
    )
    angles = [np.outer(coordinate.ravel(), omega) for coordinate in (x, y)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    table = table.astype(np.float32)
    table.setflags(write=False)
    return table
