"""What a distance meant in a labelled set: the share of pairs that were by one writer.

A statement about that set, not a probability for others: it hangs on how many writers and pages it
has. Axis letters: p pages of the labelled set.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.isotonic import IsotonicRegression

from saghog_jax.retrieval.ranking import chunks, score_rows

_BINS = 4000
# A share rests on at least so many pairs, and the whole on so many of one writer.
_FEWEST_PAIRS = 30
_FEWEST_SAME = 10


class Calibration(NamedTuple):
    """Share of same-writer pairs by distance, in steps: never rising with the distance."""

    edges: Float[np.ndarray, " n+1"]  # cosine distances from 0 to 2
    shares: Float[np.ndarray, " n"]
    counts: Int[np.ndarray, " n"]  # the pairs a share is taken from
    same: int
    pages: int
    writers: int

    def __call__(self, distances: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Shares at cosine distances of any shape; NaN where a distance is not finite."""
        place = np.searchsorted(self.edges, distances, side="right") - 1
        shares = self.shares[np.clip(place, 0, len(self.shares) - 1)]
        return np.where(np.isfinite(distances), shares, np.nan)


def calibrate(
    descriptors: Float[np.ndarray, "p d"],
    labels: Int[np.ndarray, " p"],
    groups: Int[np.ndarray, " p"] | None = None,
) -> Calibration | None:
    """Counts all pairs of labelled pages by distance and fits a share that falls with distance.

    Args:
      descriptors: [p, d].
      labels: int64 [p], -1 = unknown (left out).
      groups: int64 [p]; pairs of one group (>= 0) are left out: the same sheet is not evidence.

    Returns:
      None where fewer than two labels or fewer than ten same-writer pairs are there to count.
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
        # Cosine distances lie in 0 to 2; each pair is counted once.
        place = np.clip(distance * (_BINS / 2), 0, _BINS - 1).astype(np.int32)
        same_group = (groups[rows, None] == groups) & (groups[rows, None] >= 0)
        pairs = (rows[:, None] < np.arange(len(known))) & ~same_group
        same = labels[rows, None] == labels
        for i, chosen in enumerate((pairs & ~same, pairs & same)):
            counts[i] += np.bincount(place[chosen], minlength=_BINS)
    if counts[1].sum() < _FEWEST_SAME:
        return None
    return _fit(counts, len(known), len(np.unique(labels)))


def _fit(counts: np.ndarray, pages: int, writers: int) -> Calibration:
    total = counts.sum(0)
    # Neighbouring bins are joined until each rests on enough pairs; what is left joins the last.
    before = np.concatenate([[0], np.cumsum(total)])
    starts, at = [0], 0
    while before[-1] - before[at] >= 2 * _FEWEST_PAIRS:
        at = int(np.searchsorted(before, before[at] + _FEWEST_PAIRS))
        if before[-1] - before[at] < _FEWEST_PAIRS:
            break
        starts.append(at)
    pairs, same = (np.add.reduceat(c, starts) for c in (total, counts[1]))
    share = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(starts), dtype=float), same / pairs, sample_weight=pairs
    )
    # Joined bins of one share form a step.
    first = np.flatnonzero(np.concatenate([[True], np.diff(share) != 0]))
    edges = np.append(np.array(starts)[first], _BINS) * (2 / _BINS)
    steps = np.add.reduceat(pairs, first)
    return Calibration(edges, share[first], steps, int(same.sum()), pages, writers)
