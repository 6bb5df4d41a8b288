"""Pages to hands: which pages are joined, by which rule, and how sure each page is.

Axis letters: p pages, d width.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from saghog_jax.input_pipeline.labels.page_links import mutual_links, nearest_pages
from saghog_jax.retrieval.agglomeration import Joins, agglomerate, connect, cut, in_order
from saghog_jax.retrieval.closeness import NEAR_FEWEST, Closeness
from saghog_jax.retrieval.constraints import Constraints, no_constraints
from saghog_jax.retrieval.hand_metrics import BCubed, bcubed

# The closeness down to which hands are joined, where no labels say better: measured on pages of
# validation writers (docs/hands.md).
RULE = 0.25
# Share of a collection that the hand of half of its pages has, from which on the nearest eighth of
# the collection is by the page's own writer, so that `RULE` would split hands.
FEW_HANDS = 1 / 16
# Writers with two or more pages from which on labelled pages choose the cut.
ENOUGH_WRITERS = 10
# Neighbours of a page that may be linked with it, as in `labels=linked`.
NEIGHBOURS = 3
# Thresholds that are tried on labelled pages.
_TRIED = 400
# Pages from which the number of hands is estimated.
_SAMPLED = 2000


class Cut(NamedTuple):
    """A threshold and where it comes from."""

    threshold: float
    rule: str
    writers: int = 0


class Certainty(NamedTuple):
    """How sure each page is of its hand.

    sure: closeness to the other pages of its hand minus that to the next best hand; the threshold
      of the cut stands for a missing one. NaN if both are missing.
    following: the next best hand, -1 if there is none.
    """

    sure: Float[np.ndarray, " p"]
    following: Int[np.ndarray, " p"]


def first_neighbours(nearest: Int[np.ndarray, "p k"]) -> Int[np.ndarray, " p"]:
    """Hands of pages that are connected by first neighbours (the first partition of FINCH).

    Args:
      nearest: rows of the nearest pages of each page, the nearest first.
    """
    p = len(nearest)
    if p < 2:
        return np.zeros(p, np.int64)
    graph = coo_matrix((np.ones(p, bool), (np.arange(p), nearest[:, 0])), (p, p))
    return in_order(connected_components(graph, directed=False)[1])


def baselines(x: Float[np.ndarray, "p d"]) -> dict[str, Int[np.ndarray, " p"]]:
    """Hands by `first_neighbours` and by `linked`, mutual neighbours before the largest drop.

    Args:
      x: float32, rows of norm 1.
    """
    near = nearest_pages(x, NEIGHBOURS + 1)
    linked = connect(mutual_links(*near, NEIGHBOURS)[0], no_constraints(len(x)))
    return {"first_neighbours": first_neighbours(near[0]), "linked": linked}


def average_joins(pages: Closeness, constraints: Constraints) -> Joins:
    """All joins by average linkage of the closeness. Memory grows with the square of p."""
    return agglomerate(pages.matrix(), constraints)


def hdbscan(x: Float[np.ndarray, "p d"]) -> Int[np.ndarray, " p"]:
    """Hands by HDBSCAN on 1 - cosine; pages that it calls noise are alone.

    Args:
      x: float32, rows of norm 1.
    """
    p = len(x)
    if p < 3:
        return np.arange(p)
    # Imported late: scikit-learn takes seconds to load.
    from sklearn.cluster import HDBSCAN

    distance = np.clip(1 - (x @ x.T).astype(np.float64), 0, None)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    fitted = HDBSCAN(min_cluster_size=2, metric="precomputed", copy=True).fit(distance)
    return in_order(np.where(fitted.labels_ < 0, p + np.arange(p), fitted.labels_))


def linked_in_blocks(
    pages: Closeness, constraints: Constraints, threshold: float
) -> Int[np.ndarray, " p"]:
    """Hands of connected mutual neighbours that are at least this close.

    For collections whose pairs do not fit into memory: it grows with p alone.
    """
    pairs, _ = mutual_links(*nearest_pages(pages.x, NEIGHBOURS + 1), NEIGHBOURS)
    close = pages.of_pairs(pairs)
    order = np.argsort(-close, kind="stable")
    return connect(pairs[order][close[order] >= threshold], constraints)


def enough_labels(labels: Int[np.ndarray, " p"]) -> bool:
    """Whether so many writers have two or more pages that their pages can choose the cut."""
    return _with_several(labels) >= ENOUGH_WRITERS


def calibrated(joins: Joins, labels: Int[np.ndarray, " p"]) -> Cut:
    """The cut with the best BCubed F on labelled pages; the middle of equally good ones.

    Args:
      labels: int64 [p], -1 = unknown. At least one page has a label.
    """
    tried = _thresholds(joins.heights)
    scores = np.array([bcubed(cut(joins, threshold), labels).f for threshold in tried])
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return Cut(float(tried[best[len(best) // 2]]), "labels", _with_several(labels))


def by_rule(pages: Closeness, joins: Joins) -> Cut:
    """The cut without labels: at `RULE`, or as HDBSCAN cuts where there are few writers.

    A hand may be so large a part of the collection that it is all of a page's nearest eighth. Then
    closeness says which pages are nearer, but not which are near. HDBSCAN needs no level and does
    well there; its hands choose the cut as labels would.
    """
    rows = np.linspace(0, len(pages) - 1, min(len(pages), _SAMPLED)).astype(np.int64)
    found = hdbscan(pages.x[rows])
    if np.median(np.bincount(found)[found]) <= max(NEAR_FEWEST, FEW_HANDS * len(rows)):
        return Cut(RULE, "rule")
    labels = np.full(len(pages), -1)
    labels[rows] = found
    return Cut(calibrated(joins, labels).threshold, "few hands")


def held_out(joins: Joins, labels: Int[np.ndarray, " p"]) -> BCubed:
    """BCubed of labelled pages where the pages of other writers have chosen the cut.

    Writers are split in two halves, every second one; each half is judged by the cut of the other.
    Precision and recall count all labelled pages.
    """
    known = labels[labels >= 0]
    half = np.isin(known, np.unique(known)[::2])
    precision, recall = np.zeros(len(known)), np.zeros(len(known))
    for judged in (half, ~half):
        if judged.all() or not judged.any():
            raise ValueError("two writers are needed to judge one by the other")
        choosing = labels.copy()
        choosing[np.flatnonzero(labels >= 0)[judged]] = -1
        b = bcubed(cut(joins, calibrated(joins, choosing).threshold), labels)
        precision[judged], recall[judged] = b.precision[judged], b.recall[judged]
    return BCubed(known, precision, recall)


def certainty(
    pages: Closeness, hands: Int[np.ndarray, " p"], constraints: Constraints, threshold: float
) -> Certainty:
    """How sure each page is of its hand, and its next best hand.

    A hand that a page must not be in is never its next best one.

    Args:
      hands: int64 [p], numbered from 0.
    """
    p, count = len(hands), int(hands.max()) + 1
    sure, following = np.full(p, np.nan), np.full(p, -1)
    writer = np.full(count, -1)
    np.maximum.at(writer, hands, constraints.writers)
    barred: dict[int, list[int]] = {}
    hand_of_group = np.zeros(int(constraints.groups.max()) + 1, np.int64)
    hand_of_group[constraints.groups] = hands
    for a, b in constraints.apart.tolist():
        barred.setdefault(int(hand_of_group[a]), []).append(int(hand_of_group[b]))
        barred.setdefault(int(hand_of_group[b]), []).append(int(hand_of_group[a]))
    for rows, close in pages.to_hands(hands):
        place, own_hand = np.arange(len(close)), hands[rows]
        own = close[place, own_hand].copy()
        close[place, own_hand] = -np.inf
        mine = writer[own_hand][:, None]
        close[(mine >= 0) & (writer >= 0) & (mine != writer)] = -np.inf
        for row in np.flatnonzero(np.isin(own_hand, list(barred))).tolist():
            close[row, barred[int(own_hand[row])]] = -np.inf
        best = close.argmax(1)
        other = close[place, best]
        alone, nothing = own == -np.inf, other == -np.inf
        following[rows] = np.where(nothing, -1, best)
        difference = np.where(alone, threshold, own) - np.where(nothing, threshold, other)
        sure[rows] = np.where(alone & nothing, np.nan, difference)
    return Certainty(sure, following)


def by_size(hands: Int[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
    """The same hands, numbered from 0, the largest first, equally large ones by first page."""
    hands = in_order(hands)
    order = np.argsort(-np.bincount(hands), kind="stable")
    return np.argsort(order)[hands]


def _with_several(labels: np.ndarray) -> int:
    return int((np.bincount(labels[labels >= 0]) > 1).sum()) if (labels >= 0).any() else 0


def _thresholds(heights: np.ndarray) -> np.ndarray:
    """Thresholds between the heights of joins, and beyond both ends."""
    if not len(heights):
        return np.array([RULE])
    steps = np.unique(heights)
    inside = (steps[1:] + steps[:-1]) / 2
    tried = np.concatenate([[steps[0] - 1e-3], inside, [steps[-1] + 1e-3]])
    return tried[np.linspace(0, len(tried) - 1, min(len(tried), _TRIED)).astype(int)]
