"""Leave-one-page-out figures from counted ranks: mAP, Top-k, soft/hard/precision@k, nDCG.

Every labelled page is a query, all other pages are its gallery; the query itself is left out by
its row, never by its rank or distance. Pages without a label are distractors: in the gallery, never
a query. Average precision is the mean over the relevant pages of j / (rank of the j-th of them)
(the finite sum, as in the published code; no interpolation). Equally near pages rank by row index.

Only the ranks of the relevant pages are needed, so ranks are counted, not sorted: one plus the
number of gallery pages that are nearer. Axis letters: p pages, q queries of a chunk, m pages with
the query's label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.retrieval.ranking import CHUNK_VALUES, ScoreRows, chunks, in_tiles, without_own

CONVENTIONS = ("partners", "published", "hisir19")
# Scores of rows that are counted together: fewer fit a core's own cache, but then the calls for
# each tile take longer than memory does (measured).
_TILE_VALUES = 1 << 19
# Where at most one of so many pages is as near as the last partner, others are not counted; one of
# so many queries is asked whether that is so.
_SPARSE = 8
# From so many pages with one label on, sorting a row once is cheaper than counting for each page.
_SORT_FROM = 24


@dataclass(frozen=True)
class Evaluation:
    """Figures of each query, in the order of `rows`; means are taken by `summarize`."""

    rows: np.ndarray  # int64 [n], the page that asks; only queries that have a partner
    lonely: np.ndarray  # int64, labelled pages without a partner: reported, not averaged
    distractors: np.ndarray  # int64, pages without a label
    relevant: np.ndarray  # int64 [n], number of partners
    ap: np.ndarray  # float64 [n]
    ndcg: np.ndarray  # float64 [n]
    first: np.ndarray  # int64 [n], rank of the nearest partner, from 1
    ks: tuple[int, ...]
    hits: np.ndarray  # int64 [n, len(ks)], partners among the first k
    gallery: np.ndarray  # int64 [n], pages the query was compared with


def encode_labels(values: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Strings [p] to integers [p], equal where all given columns agree; '' anywhere gives -1."""
    columns = [np.unique(column, return_inverse=True) for column in (values, *more)]
    known = np.all([column != "" for column in (values, *more)], axis=0)
    codes = np.zeros(len(values), np.int64)
    for unique, inverse in columns:
        codes = codes * len(unique) + inverse
    codes = np.unique(codes, return_inverse=True)[1]
    return np.where(known, codes, -1)


def evaluate(
    scores: ScoreRows,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> Evaluation:
    """Ranks the partners of every labelled page among all other pages.

    Args:
      scores: larger is nearer; see `score_rows`.
      labels: int64 [p], -1 = unknown (`encode_labels`).
      groups: int64 [p]; pages of the query's own group are left out of its gallery (the same sheet,
        the same source); -1 = of no group. None leaves out the query alone.
      ks: cut-offs for `hits`.

    Raises:
      ValueError: lengths that differ, a k below 1.
    """
    labels = np.asarray(labels)
    groups = np.full(len(labels), -1) if groups is None else np.asarray(groups)
    if labels.shape != groups.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and groups {groups.shape} must both be [p]")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)}: give cut-offs of at least 1")
    p = len(labels)
    members = _Members(labels, groups)
    queries = np.flatnonzero(labels >= 0)
    partners = members.partners(queries)
    lonely, queries = queries[partners == 0], queries[partners > 0]
    # Queries with as many label mates as one another share a chunk, so that padding is small.
    queries = queries[np.argsort(members.mates(queries), kind="stable")]
    found = [_ranked(scores(rows), rows, members, groups, ks) for rows in chunks(queries, p)]
    back = np.argsort(queries)
    keys = ("relevant", "ap", "ndcg", "first", "hits", "gallery")
    empty = _ranked(np.zeros((0, p), np.float32), queries[:0], members, groups, ks)
    columns = {key: np.concatenate([f[key] for f in [empty, *found]])[back] for key in keys}
    return Evaluation(
        rows=queries[back],
        lonely=lonely,
        distractors=np.flatnonzero(labels < 0),
        ks=tuple(ks),
        **columns,
    )


def summarize(evaluation: Evaluation, convention: str = "partners") -> dict[str, float | int]:
    """Means over the queries, as a flat dict (`map`, `ndcg`, `top1`, `soft@5`, `hard@5`...).

    `top<k>` and `soft@k`: at least one partner among the first k. `hard@k`: all of the first k are
    partners (so never for a query with fewer than k). `precision@k`: their share of k.

    mAP and nDCG always average the queries that have a partner. Convention `partners` does so for
    the others too; `published` (reference: section 7) counts labelled pages without a partner as
    failures in soft, hard and precision@k; `hisir19` (the competition's evaluator) also in Top-k.
    Where every writer has several pages (Historical-WI) the three agree.

    Returns:
      the figures and the counts `queries`, `queries_without_partner`, `distractors`; figures are
      absent where there is no query.

    Raises:
      ValueError: an unknown convention.
    """
    check_choice("convention", convention, CONVENTIONS)
    e = evaluation
    counts = {
        "queries": len(e.rows),
        "queries_without_partner": len(e.lonely),
        "distractors": len(e.distractors),
    }
    if not len(e.rows):
        return counts
    everyone = len(e.rows) + len(e.lonely)
    over = len(e.rows) if convention == "partners" else everyone
    over_top = everyone if convention == "hisir19" else len(e.rows)
    figures = {"map": float(e.ap.mean()), "ndcg": float(e.ndcg.mean())}
    for name, (hits, most) in _of_queries(e).items():
        queries = over_top if name.startswith("top") else over
        figures[name] = float(hits.sum() / (most * queries))
    return {**figures, **counts}


def _of_queries(e: Evaluation) -> dict[str, tuple[np.ndarray, int]]:
    """What each query [q] adds to the figures at k, and the most it could add to them."""
    found = {}
    for hits, k in zip(e.hits.T, e.ks, strict=True):
        found |= {f"top{k}": (hits > 0, 1), f"soft@{k}": (hits > 0, 1)}
        found |= {f"hard@{k}": (hits == k, 1), f"precision@{k}": (hits, k)}
    return found


def confidence(
    evaluation: Evaluation, labels: np.ndarray, samples: int, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of mAP and Top-1 over the queries that have a partner.

    Whole labels are drawn, with replacement, not queries: pages of one writer succeed and fail
    together, and intervals over queries would be too narrow.

    Returns:
      low and high of `map` and `top1`; nothing where fewer than two labels ask.
    """
    codes, inverse = np.unique(labels[evaluation.rows], return_inverse=True)
    n = len(codes)
    if n < 2 or samples < 1:
        return {}
    sums = [np.bincount(inverse, w, n) for w in (None, evaluation.ap, evaluation.first == 1)]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=samples) @ np.stack(sums, 1)
    means = drawn[:, 1:] / drawn[:, :1]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {key: (float(low[i]), float(high[i])) for i, key in enumerate(("map", "top1"))}


def difference(
    a: Evaluation,
    b: Evaluation,
    labels: np.ndarray,
    samples: int,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """By how much the mAP of `a` exceeds that of `b`, with its paired bootstrap interval.

    Both have the same queries, of the pages with `labels`. Whole labels are drawn, as in
    `confidence`, the same ones for both.

    Returns:
      the difference, the low and the high end of its interval.

    Raises:
      ValueError: other queries in `a` than in `b`, or fewer than two labels that ask.
    """
    if not np.array_equal(a.rows, b.rows):
        raise ValueError("the two evaluations have different queries")
    codes, inverse = np.unique(labels[a.rows], return_inverse=True)
    n = len(codes)
    if n < 2:
        raise ValueError(f"{n} label asks; an interval needs two")
    count, gain = (np.bincount(inverse, w, n) for w in (None, a.ap - b.ap))
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    means = (drawn @ gain) / (drawn @ count)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(gain.sum() / count.sum()), float(low), float(high)


def per_label(evaluation: Evaluation, labels: np.ndarray) -> dict[int, dict[str, float | int]]:
    """Figures of each label that has a query, over its queries: those of `summarize`, and Top-1."""
    e = evaluation
    columns = {"map": (e.ap, 1), "ndcg": (e.ndcg, 1), "top1": (e.first == 1, 1), **_of_queries(e)}
    codes, inverse = np.unique(labels[e.rows], return_inverse=True)
    count = np.bincount(inverse, minlength=len(codes))
    means = {
        name: np.bincount(inverse, x, len(codes)) / (most * count)
        for name, (x, most) in columns.items()
    }
    return {
        int(code): {name: float(x[i]) for name, x in means.items()} | {"queries": int(count[i])}
        for i, code in enumerate(codes)
    }


class _Members:
    """The pages of each label as one padded look-up, and whom a page is not compared with."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        self._labels, self._groups = labels, groups
        self._order = np.argsort(labels, kind="stable")
        ordered = labels[self._order]
        self._start = np.searchsorted(ordered, np.arange(labels.max(initial=-1) + 1))
        self._count = np.bincount(labels[labels >= 0], minlength=labels.max(initial=-1) + 1)
        self._place = np.empty(len(labels), np.int64)
        self._place[self._order] = np.arange(len(labels))
        # Pages of the own group, itself among them: all of them, and those of the same label.
        self._left_out = self._own(groups)
        self._left_out_mates = self._own(labels * (groups.max(initial=0) + 2) + groups + 1)

    def _own(self, codes: np.ndarray) -> np.ndarray:
        _, inverse, count = np.unique(codes, return_inverse=True, return_counts=True)
        return np.where(self._groups < 0, 1, count[inverse])

    def mates(self, rows: np.ndarray) -> np.ndarray:
        """Number of other pages with each row's label, int64 [q]."""
        return self._count[self._labels[rows]] - 1

    def partners(self, rows: np.ndarray) -> np.ndarray:
        """Number of those that are in the row's gallery, int64 [q]."""
        return self._count[self._labels[rows]] - self._left_out_mates[rows]

    def gallery(self, rows: np.ndarray) -> np.ndarray:
        """Number of pages that each row is compared with, int64 [q]."""
        return len(self._labels) - self._left_out[rows]

    def table(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Other pages with each row's label, int64 [q, m]; which are real and in its gallery."""
        count = self.mates(rows)
        slot = np.arange(count.max(initial=0))
        start = self._start[self._labels[rows]]
        skip = slot >= (self._place[rows] - start)[:, None]
        real = slot < count[:, None]
        mates = self._order[np.where(real, start[:, None] + slot + skip, 0)]
        groups = self._groups[rows, None]
        return mates, real & ((groups < 0) | (self._groups[mates] != groups))


def _ranked(
    block: np.ndarray, rows: np.ndarray, members: _Members, groups: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    mates, real = members.table(rows)
    ranks = _ranks(without_own(block, rows, groups), mates, real)
    ranks = np.where(real, ranks, np.iinfo(np.int64).max)
    ranks.sort(axis=1)
    count = members.partners(rows)
    j = np.arange(1, ranks.shape[1] + 1)
    inside = j <= count[:, None]
    gain = 1 / np.log2(1 + np.where(inside, ranks, 1))
    ideal = np.cumsum(1 / np.log2(1 + j))
    return {
        "relevant": count,
        "ap": np.where(inside, j / ranks, 0).sum(1) / np.maximum(count, 1),
        "ndcg": np.where(inside, gain, 0).sum(1) / ideal[count - 1] if len(j) else count * 0.0,
        "first": ranks.min(axis=1, initial=np.iinfo(np.int64).max),
        "hits": (ranks[:, :, None] <= np.asarray(ks)).sum(1),
        "gallery": members.gallery(rows),
    }


def _ranks(block: np.ndarray, mates: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Rank of each mate among the scores of its row: one more than the pages before it."""
    ranks = np.empty(mates.shape, np.int64)

    def rank(tile: slice) -> None:
        ranks[tile] = _ranks_of(block[tile], mates[tile], real[tile])

    in_tiles(rank, len(block), _TILE_VALUES // max(1, block.shape[1]))
    return ranks


def _ranks_of(block: np.ndarray, mates: np.ndarray, real: np.ndarray) -> np.ndarray:
    p = block.shape[1]
    threshold = np.take_along_axis(block, mates, 1)
    kept, columns = _at_least(block, np.where(real, threshold, np.inf).min(1, initial=np.inf))
    by = _by_sorting if mates.shape[1] >= _SORT_FROM else _by_counting
    nearer, as_near = by(kept, threshold)
    # A page ties with itself; only where another one does too must the row indices be looked at.
    tied = np.argwhere(real & (as_near > nearer + 1))
    step = max(1, CHUNK_VALUES // max(1, p))
    for start in range(0, len(tied), step):
        i, j = tied[start : start + step].T
        equal = kept[i] == threshold[i, j, None]
        nearer[i, j] += (equal & (columns[i] < mates[i, j, None])).sum(1)
    return nearer + 1


def _at_least(block: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of each row that are not below its least [q], and their columns: both [q, w].

    What is farther than a query's farthest partner comes before none, and where that is nearly the
    whole gallery, one look at it is enough. Rows are filled up with -inf. Where it is not (by some
    of the rows), the block is returned as it is.
    """
    q, p = block.shape
    some = slice(None, None, _SPARSE)
    if np.count_nonzero(block[some] >= least[some, None]) * _SPARSE > block[some].size:
        return block, np.broadcast_to(np.arange(p), block.shape)
    row, column = np.divmod(np.flatnonzero(block >= least[:, None]), p)
    count = np.bincount(row, minlength=q)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    kept = np.full((q, count.max(initial=0)), -np.inf, block.dtype)
    columns = np.zeros(kept.shape, np.int64)
    kept[row, place], columns[row, place] = block[row, column], column
    return kept, columns


def _by_counting(block: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of each row above its thresholds [q, m], and not below them."""
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
    # Eight flags are added at a time, as bytes of a word that cannot overflow in 255 steps:
    # measured four times as fast as a sum of the flags. The width is a multiple of eight.
    words = flags.view(np.uint64)
    parts = np.add.reduceat(words, np.arange(0, words.shape[1], 255), axis=1)
    return parts.view(np.uint8).sum(1, dtype=np.int64)


def _by_sorting(block: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same; only values are sorted, which is several times as fast as sorting pages."""
    p = block.shape[1]
    nearer, as_near = np.empty(threshold.shape, np.int64), np.empty(threshold.shape, np.int64)
    for i, row in enumerate(block):
        ascending = np.sort(row)
        nearer[i] = p - np.searchsorted(ascending, threshold[i], "right")
        as_near[i] = p - np.searchsorted(ascending, threshold[i], "left")
    return nearer, as_near
