"""Even samples."""

import numpy as np


def evenly(n: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below n, evenly spread: int64, ascending."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)
