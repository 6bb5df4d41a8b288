"""Average-linkage agglomeration of pages that obeys constraints, and its cut.

scikit-learn's agglomeration has no pairs that must stay apart, so this one is its own; without
constraints both give the same hands. The two hands of largest mean similarity are joined until one
is left or all others must stay apart. Axis letters: p pages, g groups, n joins.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from saghog_jax.retrieval.constraints import Constraints


class Joins(NamedTuple):
    """Joins in their order, the most similar first.

    Attributes:
      groups: int64 [p], the group that each page starts in.
      pairs: int64 [n, 2], a group of either hand.
      heights: float64 [n], mean similarity of the pages of one hand to those of the other. It never
        rises from one join to the next.
    """

    groups: Int[np.ndarray, " p"]
    pairs: Int[np.ndarray, "n two"]
    heights: Float[np.ndarray, " n"]


def agglomerate(similarity: Float[np.ndarray, "p p"], constraints: Constraints) -> Joins:
    """All joins of the pages, from groups of pages that must be in one hand upwards.

    Args:
      similarity: symmetric; overwritten. It takes all memory that grows with the square of p.
      constraints: must-links are joined first, pages that must stay apart never.

    Raises:
      ValueError: the matrix is not [p, p] of these constraints.
    """
    groups = constraints.groups
    if similarity.shape != (len(groups), len(groups)):
        raise ValueError(f"similarity {similarity.shape} of {len(groups)} pages")
    s, sizes = _between_groups(similarity, groups)
    _keep_apart(s, constraints)
    nearest, value = s.argmax(1), s.max(1)
    pairs, heights = [], []
    while len(sizes) > 1:
        a = int(value.argmax())
        if value[a] == -np.inf:
            break
        b = int(nearest[a])
        pairs.append((a, b))
        heights.append(float(value[a]))
        # The mean with -inf is -inf: if one page must stay apart from another hand, then so must
        # all pages of its hand.
        row = (sizes[a] * s[a] + sizes[b] * s[b]) / (sizes[a] + sizes[b])
        row[[a, b]] = -np.inf
        sizes[a] += sizes[b]
        s[a], s[:, a], s[b], s[:, b] = row, row, -np.inf, -np.inf
        value[b] = -np.inf
        # The joined hand is no nearer to another than the nearer of both was, so that only those
        # change whose nearest hand was one of both.
        again = np.flatnonzero(((nearest == a) | (nearest == b)) & (value > -np.inf))
        again = np.union1d(again, [a])
        nearest[again], value[again] = s[again].argmax(1), s[again].max(1)
    # Rounding may let a height rise by a little.
    falling = np.minimum.accumulate(np.array(heights, np.float64))
    return Joins(groups, np.array(pairs, np.int64).reshape(-1, 2), falling)


def cut(joins: Joins, threshold: float) -> Int[np.ndarray, " p"]:
    """Hands int64 [p] after all joins of at least this height, numbered in the order of pages."""
    pairs = joins.pairs[joins.heights >= threshold]
    count = int(joins.groups.max()) + 1
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), (count, count))
    return in_order(connected_components(graph, directed=False)[1][joins.groups])


def connect(pairs: Int[np.ndarray, "m two"], constraints: Constraints) -> Int[np.ndarray, " p"]:
    """Hands int64 [p]: pages of a chain of pairs are in one hand, as far as constraints allow.

    Args:
      pairs: rows, the most similar first. A pair is left out if it would join hands that must stay
        apart.
    """
    groups = constraints.groups
    hand = np.arange(int(groups.max()) + 1).tolist()
    apart: list[set[int]] = [set() for _ in hand]
    for a, b in constraints.apart.tolist():
        apart[a].add(b)
        apart[b].add(a)
    writer = _writer_of_groups(constraints).tolist()

    def root(group: int) -> int:
        while hand[group] != group:
            hand[group] = hand[hand[group]]
            group = hand[group]
        return group

    for first, second in groups[pairs].tolist():
        a, b = root(first), root(second)
        other_writer = min(writer[a], writer[b]) >= 0 and writer[a] != writer[b]
        if a == b or b in apart[a] or other_writer:
            continue
        hand[b] = a
        writer[a] = max(writer[a], writer[b])
        for other in apart[b]:
            apart[other].discard(b)
            apart[other].add(a)
        apart[a] |= apart[b]
    return in_order(np.array([root(group) for group in range(len(hand))])[groups])


def in_order(hands: Int[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
    """The same hands, numbered from 0 in the order of their first pages."""
    _, first, inverse = np.unique(hands, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _between_groups(s: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean similarities of groups [g, g], -inf on the diagonal, and their sizes float [g]."""
    count = int(groups.max()) + 1
    sizes = np.bincount(groups).astype(s.dtype)
    if count < len(groups):
        members = coo_matrix((np.ones(len(groups), s.dtype), (groups, np.arange(len(groups)))))
        s = members.tocsr() @ (members.tocsr() @ s).T
        s /= sizes[:, None] * sizes
    np.fill_diagonal(s, -np.inf)
    return s, sizes


def _keep_apart(s: np.ndarray, constraints: Constraints) -> None:
    a, b = constraints.apart.T
    s[a, b] = s[b, a] = -np.inf
    writer = _writer_of_groups(constraints)
    for group in np.flatnonzero(writer >= 0).tolist():
        s[group, (writer >= 0) & (writer != writer[group])] = -np.inf


def _writer_of_groups(constraints: Constraints) -> np.ndarray:
    writer = np.full(int(constraints.groups.max()) + 1, -1)
    np.maximum.at(writer, constraints.groups, constraints.writers)
    return writer
