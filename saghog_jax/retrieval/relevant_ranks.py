"""Ranks of the relevant pages of each query, counted without sorting the gallery.

The rank of a page is one plus the number of pages that are nearer. Only the ranks of the relevant
pages are needed, so counting is faster than sorting.

Axis letters: p pages, q queries of a chunk, m pages with the query's label, w pages that count.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from saghog_jax.retrieval.ranking import CHUNK_VALUES, in_tiles

# Scores per tile. Smaller tiles fit into the cache of a core, but their overhead is larger than the
# gain (measured).
_TILE_VALUES = 1 << 19
# Pages beyond the farthest relevant page are removed if at most one of so many pages remains; this
# is decided from one of so many queries.
_SPARSE = 8
# From so many pages per label on, sorting the values of a row once is faster than counting for each
# page. numpy sorts float32 by vector instructions: with AVX2 this pays from 8 pages on, with
# AVX-512 from 5 (measured).
_SORT_FROM = 8


class Members:
    """Looks up the pages of each label and counts galleries.

    Args:
      labels: int64 [p], -1 = unknown.
      groups: int64 [p], -1 = no group; pages of the query's group are excluded from its gallery.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        self._labels, self._groups = labels, groups
        self._order = np.argsort(labels, kind="stable")
        ordered = labels[self._order]
        self._start = np.searchsorted(ordered, np.arange(labels.max(initial=-1) + 1))
        self._count = np.bincount(labels[labels >= 0], minlength=labels.max(initial=-1) + 1)
        self._position = np.empty(len(labels), np.int64)
        self._position[self._order] = np.arange(len(labels))
        # Number of pages in the own group, including the page: all, and those of the same label.
        self._excluded = self._count_group(groups)
        pairs = labels * (groups.max(initial=0) + 2) + groups + 1
        self._excluded_same_label = self._count_group(pairs)

    def _count_group(self, codes: np.ndarray) -> np.ndarray:
        _, inverse, count = np.unique(codes, return_inverse=True, return_counts=True)
        return np.where(self._groups < 0, 1, count[inverse])

    def count_same_label(self, rows: np.ndarray) -> np.ndarray:
        """Number of other pages with the label of each row, int64 [q]."""
        return self._count[self._labels[rows]] - 1

    def count_relevant(self, rows: np.ndarray) -> np.ndarray:
        """Number of pages with the label of each row in its gallery, int64 [q]."""
        return self._count[self._labels[rows]] - self._excluded_same_label[rows]

    def count_gallery(self, rows: np.ndarray) -> np.ndarray:
        """Number of pages in the gallery of each row, int64 [q]."""
        return len(self._labels) - self._excluded[rows]

    def table(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Other pages with the label of each row.

        Returns:
          rows int64 [q, m], and bool [q, m]: True for a page in the gallery, False for padding and
          for pages of the query's group.
        """
        count = self.count_same_label(rows)
        slot = np.arange(count.max(initial=0))
        start = self._start[self._labels[rows]]
        skip = slot >= (self._position[rows] - start)[:, None]
        real = slot < count[:, None]
        same_label = self._order[np.where(real, start[:, None] + slot + skip, 0)]
        groups = self._groups[rows, None]
        return same_label, real & ((groups < 0) | (self._groups[same_label] != groups))


def count_ranks(
    block: Float[np.ndarray, "q p"], columns: Int[np.ndarray, "q m"], real: Bool[np.ndarray, "q m"]
) -> Int[np.ndarray, "q m"]:
    """Ranks of some pages in the gallery of each query, from 1.

    Args:
      block: scores; pages of equal score rank by column.
      columns: the pages to rank.
      real: False for padding, whose rank is arbitrary.
    """
    ranks = np.empty(columns.shape, np.int64)

    def rank(tile: slice) -> None:
        ranks[tile] = _count_tile(block[tile], columns[tile], real[tile])

    in_tiles(rank, len(block), _TILE_VALUES // max(1, block.shape[1]))
    return ranks


def _count_tile(block: np.ndarray, columns: np.ndarray, real: np.ndarray) -> np.ndarray:
    p = block.shape[1]
    threshold = np.take_along_axis(block, columns, 1)
    kept, kept_columns = _at_least(block, np.where(real, threshold, np.inf).min(1, initial=np.inf))
    count = _by_sorting if columns.shape[1] >= _SORT_FROM else _by_counting
    nearer, as_near = count(kept, threshold)
    # A page ties with itself; the columns matter only if another page ties too.
    tied = np.argwhere(real & (as_near > nearer + 1))
    step = max(1, CHUNK_VALUES // max(1, p))
    for start in range(0, len(tied), step):
        i, j = tied[start : start + step].T
        equal = kept[i] == threshold[i, j, None]
        nearer[i, j] += (equal & (kept_columns[i] < columns[i, j, None])).sum(1)
    return nearer + 1


def _at_least(block: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of each row that are not below `least` [q], and their columns: both [q, w].

    Pages farther than the farthest relevant page do not change any rank. If they are nearly the
    whole gallery, they are removed once, and rows are filled with -inf. Otherwise (judged by a
    sample of the rows) the block is returned unchanged.
    """
    q, p = block.shape
    sample = slice(None, None, _SPARSE)
    if np.count_nonzero(block[sample] >= least[sample, None]) * _SPARSE > block[sample].size:
        return block, np.broadcast_to(np.arange(p), block.shape)
    row, column = np.divmod(np.flatnonzero(block >= least[:, None]), p)
    count = np.bincount(row, minlength=q)
    position = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    kept = np.full((q, count.max(initial=0)), -np.inf, block.dtype)
    columns = np.zeros(kept.shape, np.int64)
    kept[row, position], columns[row, position] = block[row, column], column
    return kept, columns


def _by_counting(block: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of scores of each row above its thresholds [q, m], and not below them."""
    q, w = block.shape
    nearer, as_near = np.empty(threshold.shape, np.int64), np.empty(threshold.shape, np.int64)
    flags = np.zeros((q, -(-w // 8) * 8), bool)
    for j in range(threshold.shape[1]):
        np.greater(block, threshold[:, j, None], out=flags[:, :w])
        nearer[:, j] = _count_true(flags)
        np.greater_equal(block, threshold[:, j, None], out=flags[:, :w])
        as_near[:, j] = _count_true(flags)
    return nearer, as_near


def _count_true(flags: np.ndarray) -> np.ndarray:
    # Adds eight flags at a time, as bytes of a word, which cannot overflow in 255 steps: four times
    # as fast as a sum of the flags. The width is a multiple of eight.
    words = flags.view(np.uint64)
    parts = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)
    return parts.view(np.uint8).sum(1, dtype=np.int64)


def _by_sorting(block: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_by_counting`; sorting values only is several times as fast as sorting pages."""
    p = block.shape[1]
    nearer, as_near = np.empty(threshold.shape, np.int64), np.empty(threshold.shape, np.int64)
    for i, row in enumerate(block):
        ascending = np.sort(row)
        nearer[i] = p - np.searchsorted(ascending, threshold[i], "right")
        as_near[i] = p - np.searchsorted(ascending, threshold[i], "left")
    return nearer, as_near
