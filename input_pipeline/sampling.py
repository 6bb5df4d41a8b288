"""Which of many are taken, where only some are needed."""

import numpy as np


def evenly(n: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below n, spread evenly, int64, ascending."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)
