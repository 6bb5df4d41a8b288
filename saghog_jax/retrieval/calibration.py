"""Calibration of distances: the fraction of same-writer pairs by distance in a labelled set.

The fractions describe this set; they are not probabilities for other sets, because they depend on
its numbers of writers and pages. Axis letters: p pages of the labelled set, n steps.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saghog_jax.retrieval.ranking import chunks, score_rows

_BINS = 4000
# Smallest number of pairs per step, and of same-writer pairs in the set.
_MIN_PAIRS = 30
_MIN_SAME = 10


class Calibration(NamedTuple):
    """Fraction of same-writer pairs as a step function that never rises with the distance.

    Attributes:
      edges: cosine distances between the steps, from 0 to 2.
      shares: fraction of same-writer pairs of each step.
      counts: number of pairs of each step.
      same: number of same-writer pairs.
      pages, writers: size of the labelled set.
    """

    edges: Float[np.ndarray, " n+1"]
    shares: Float[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]
    same: int
    pages: int
    writers: int

    def __call__(self, distances: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Fractions at cosine distances of any shape; NaN where a distance is not finite."""
        steps = np.searchsorted(self.edges, distances, side="right") - 1
        shares = self.shares[np.clip(steps, 0, len(self.shares) - 1)]
        return np.where(np.isfinite(distances), shares, np.nan)


def calibrate(
    descriptors: Float[np.ndarray, "p d"],
    labels: Int[np.ndarray, " p"],
    groups: Int[np.ndarray, " p"] | None = None,
) -> Calibration | None:
    """Counts all pairs of labelled pages by distance and fits a falling step function.

    Args:
      descriptors: [p, d].
      labels: int64 [p], -1 = unknown (ignored).
      groups: int64 [p]; pairs within a group (>= 0) are ignored: the same sheet is no evidence.

    Returns:
      None if the set has fewer than two labels or fewer than ten same-writer pairs.
    """
    known = np.flatnonzero(labels >= 0)
    labels = labels[known]
    groups = np.full(len(known), -1) if groups is None else groups[known]
    if len(np.unique(labels)) < 2:
        return None
    scores = score_rows(np.asarray(descriptors[known], np.float32))
    counts = np.zeros((2, _BINS), np.int64)
    for rows in chunks(np.arange(len(known)), len(known)):
        distance = 1 - scores(rows)
        # Cosine distances are between 0 and 2; each pair is counted once.
        bins = np.clip(distance * (_BINS / 2), 0, _BINS - 1).astype(np.int32)
        same_group = (groups[rows, None] == groups) & (groups[rows, None] >= 0)
        pairs = (rows[:, None] < np.arange(len(known))) & ~same_group
        same = labels[rows, None] == labels
        for i, selection in enumerate((pairs & ~same, pairs & same)):
            counts[i] += np.bincount(bins[selection], minlength=_BINS)
    if counts[1].sum() < _MIN_SAME:
        return None
    return _fit(counts, len(known), len(np.unique(labels)))


def _fit(counts: np.ndarray, pages: int, writers: int) -> Calibration:
    total = counts.sum(0)
    # Neighbouring bins are merged until each has enough pairs; the remainder joins the last one.
    before = np.concatenate([[0], np.cumsum(total)])
    starts, start = [0], 0
    while before[-1] - before[start] >= 2 * _MIN_PAIRS:
        start = int(np.searchsorted(before, before[start] + _MIN_PAIRS))
        if before[-1] - before[start] < _MIN_PAIRS:
            break
        starts.append(start)
    pairs, same = (np.add.reduceat(c, starts) for c in (total, counts[1]))
    # Imported late: scikit-learn takes seconds to load.
    from sklearn.isotonic import IsotonicRegression

    share = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(starts), dtype=float), same / pairs, sample_weight=pairs
    )
    # Merged bins of equal fractions form one step.
    first = np.flatnonzero(np.concatenate([[True], np.diff(share) != 0]))
    edges = np.append(np.array(starts)[first], _BINS) * (2 / _BINS)
    steps = np.add.reduceat(pairs, first)
    return Calibration(edges, share[first], steps, int(same.sum()), pages, writers)
