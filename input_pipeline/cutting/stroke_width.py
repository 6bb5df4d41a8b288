"""Stroke width of a page, which tells how much handwriting fits into a patch."""

import numpy as np

# Runs of ink longer than this multiple of the median are no strokes: borders, blots, ruled lines.
_LONGEST = 4


def stroke_width(ink: np.ndarray) -> float:
    """Mean width of the strokes of a page, in pixels; 0 without ink.

    A straight stroke of length l, width w and direction t crosses l |sin t| rows and l |cos t|
    columns. Let a and b be the numbers of its runs of ink along rows and along columns. Then its
    area w l, divided by sqrt(a^2 + b^2), is w for every direction. The mean over strokes of all
    directions is at most one ninth too wide. Runs that are too long for strokes are left out, along
    rows and along columns.

    Args:
      ink: uint8 [h, w], 1 on ink.
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
    # A zero before the first row and after every row separates runs.
    padded = np.zeros((h, w + 1), np.int8)
    padded[:, :w] = mask
    ends = np.flatnonzero(np.diff(padded.reshape(-1), prepend=np.int8(0)))
    return ends[1::2] - ends[::2]
