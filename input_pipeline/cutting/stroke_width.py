"""How wide the strokes of a page are: what a patch of so many pixels will see of a hand."""

import numpy as np

# A run of ink longer than so many of the middle one is no stroke: a border, a blot, a ruled line.
_LONGEST = 4


def stroke_width(ink: np.ndarray) -> float:
    """Mean width of the strokes of a page, in pixels; 0 where there is no ink.

    A straight stroke of length l, width w and direction t crosses l |sin t| rows and l |cos t|
    columns, so that its area w l over the root of the sum of squares of its runs in rows and in
    columns is w, whatever its direction; the mean over strokes of all directions is at most a
    ninth too wide. Runs that are too long for strokes are left out, in both.

    Args:
      ink: uint8 [h, w], 1 where there is ink.
    """
    counts, areas = [], []
    for mask in (ink, ink.T):
        runs = _runs(mask)
        if not len(runs):
            return 0.0
        runs = runs[runs <= _LONGEST * np.median(runs)]
        counts.append(len(runs))
        areas.append(runs.sum())
    return float(np.mean(areas) / np.hypot(*counts))


def _runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of ones along the rows of a mask uint8 [h, w], int64."""
    h, w = mask.shape
    # A zero before the first row and after every row keeps runs apart.
    padded = np.zeros((h, w + 1), np.int8)
    padded[:, :w] = mask
    ends = np.flatnonzero(np.diff(padded.reshape(-1), prepend=np.int8(0)))
    return ends[1::2] - ends[::2]
