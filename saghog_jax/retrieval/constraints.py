"""Pairs of pages that must, or must not, be in one hand, and their contradictions.

Axis letters: p pages, m and c pairs.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Pair = tuple[int, int]


class Contradiction(NamedTuple):
    """Pages that must not be in one hand, and the chain of pairs that puts them into one.

    apart: the two pages.
    chain: the accepted pairs between them, from the first page to the second; empty if both are
      pages of one known writer.
    writers: whether the pages are apart as pages of two known writers, not by a decision.
    """

    apart: Pair
    chain: tuple[Pair, ...]
    writers: bool = False


class Constraints(NamedTuple):
    """What a sorting into hands obeys; free of contradictions.

    groups: int64 [p], equal for pages that must be in one hand; numbered from 0.
    apart: int64 [c, 2], pairs of groups that must not be in one hand.
    writers: int64 [p], known writers whose pages must not mix; -1 = unknown.
    """

    groups: np.ndarray
    apart: np.ndarray
    writers: np.ndarray


def no_constraints(pages: int) -> Constraints:
    """Constraints that bind none of the pages."""
    return Constraints(np.arange(pages), np.zeros((0, 2), np.int64), np.full(pages, -1))


def resolve(
    pages: int,
    accepted: Iterable[Pair],
    rejected: Iterable[Pair],
    writers: np.ndarray | None = None,
) -> tuple[Constraints, list[Contradiction]]:
    """Constraints from decisions and known writers. Decisions that contradict are left out.

    Where rejected pages are joined by accepted pairs, the shortest such chain is listed, and
    neither the rejection nor the pairs of the chain are obeyed. Where a chain joins pages of two
    known writers, the writers stay and the pairs of the chain are not obeyed.

    Args:
      pages: number of pages p.
      accepted, rejected: pairs of rows.
      writers: int64 [p], known writers, -1 = unknown; None: writers are not used.
    """
    writers = np.full(pages, -1) if writers is None else np.asarray(writers, np.int64)
    accepted = {tuple(sorted(pair)) for pair in accepted if pair[0] != pair[1]}
    rejected = {tuple(sorted(pair)) for pair in rejected if pair[0] != pair[1]}
    contradictions = _against_writers(accepted, writers)
    kept = []
    left_out: set[Pair] = set()
    neighbours = _neighbours(accepted, writers)
    for pair in sorted(rejected):
        chain = _chain(neighbours, *pair)
        if chain is None:
            kept.append(pair)
            continue
        decided = tuple(link for link in chain if tuple(sorted(link)) in accepted)
        contradictions.append(Contradiction(pair, decided))
        left_out |= {tuple(sorted(link)) for link in decided}
    groups = _groups(pages, accepted - left_out, writers)
    apart = groups[np.array(kept, np.int64).reshape(-1, 2)]
    return Constraints(groups, np.unique(np.sort(apart, 1), axis=0), writers), contradictions


def _against_writers(accepted: set[Pair], writers: np.ndarray) -> list[Contradiction]:
    """Removes the accepted pairs that join known writers; returns the chains that they form."""
    contradictions = []
    known = writers >= 0
    while True:
        groups = _groups(len(writers), accepted, writers)
        mixed = np.unique(np.stack([groups, writers], 1)[known], axis=0)[:, 0]
        mixed = mixed[1:][mixed[1:] == mixed[:-1]]
        if not len(mixed):
            return contradictions
        rows = np.flatnonzero((groups == mixed[0]) & known)
        other = rows[writers[rows] != writers[rows[0]]][0]
        chain = _chain(_neighbours(accepted, writers), int(rows[0]), int(other))
        decided = tuple(link for link in chain or () if tuple(sorted(link)) in accepted)
        apart = (decided[0][0], decided[-1][1])
        contradictions.append(Contradiction(apart, decided, writers=True))
        accepted -= {tuple(sorted(link)) for link in decided}


def _stars(writers: np.ndarray) -> Iterable[Pair]:
    """Pairs of the first page of each known writer with the others."""
    _, first, inverse = np.unique(writers, return_index=True, return_inverse=True)
    for row in np.flatnonzero(writers >= 0).tolist():
        if first[inverse[row]] != row:
            yield int(first[inverse[row]]), row


def _groups(pages: int, accepted: Iterable[Pair], writers: np.ndarray) -> np.ndarray:
    pairs = np.array([*accepted, *_stars(writers)], np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), (pages, pages))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _neighbours(accepted: Iterable[Pair], writers: np.ndarray) -> dict[int, list[int]]:
    neighbours: dict[int, list[int]] = {}
    for a, b in [*sorted(accepted), *_stars(writers)]:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    return neighbours


def _chain(neighbours: dict[int, list[int]], start: int, end: int) -> Sequence[Pair] | None:
    """The shortest chain of pairs from one page to another; None if there is none."""
    before = {start: start}
    waiting = deque([start])
    while waiting and end not in before:
        page = waiting.popleft()
        for other in neighbours.get(page, ()):
            if other not in before:
                before[other] = page
                waiting.append(other)
    if end not in before:
        return None
    chain = []
    while end != start:
        chain.append((before[end], end))
        end = before[end]
    return chain[::-1]
