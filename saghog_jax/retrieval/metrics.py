"""Leave-one-page-out metrics: mAP, Top-k, soft/hard/precision@k, nDCG.

Every labelled page is a query; all other pages are its gallery. The query is excluded by its row,
never by its rank or distance. Pages without a label are distractors: in the gallery, never a query.
A page is relevant to a query of the same label. Average precision is the mean over the relevant
pages of j / (rank of the j-th relevant page): the finite sum, as in the published code, without
interpolation. Pages of equal score rank by row index. relevant_ranks.py computes the ranks.

Axis letters: p pages, n queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.retrieval.ranking import ScoreRows, chunks, hide_own
from saghog_jax.retrieval.relevant_ranks import Members, count_ranks

CONVENTIONS = ("partners", "published", "hisir19")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of each query, in the order of `rows`; `summarize` averages them.

    Attributes:
      rows: pages that are queries: labelled pages with a relevant page.
      without_relevant: labelled pages without a relevant page; they are reported, not averaged.
      distractors: pages without a label.
      relevant: number of relevant pages.
      ap: average precision.
      ndcg: normalised discounted cumulative gain.
      first: rank of the first relevant page, from 1.
      ks: cut-offs of `hits`.
      hits: number of relevant pages among the first k.
      gallery: number of pages in the gallery.
    """

    rows: Int[np.ndarray, " n"]
    without_relevant: Int[np.ndarray, " _"]
    distractors: Int[np.ndarray, " _"]
    relevant: Int[np.ndarray, " n"]
    ap: Float[np.ndarray, " n"]
    ndcg: Float[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]
    ks: tuple[int, ...]
    hits: Int[np.ndarray, "n ks"]
    gallery: Int[np.ndarray, " n"]


def encode_labels(
    values: Shaped[np.ndarray, " p"], *more: Shaped[np.ndarray, " p"]
) -> Int[np.ndarray, " p"]:
    """Integers [p] for columns of strings [p]: equal if all columns agree, -1 if one is ''."""
    columns = [np.unique(column, return_inverse=True) for column in (values, *more)]
    known = np.all([column != "" for column in (values, *more)], axis=0)
    codes = np.zeros(len(values), np.int64)
    for unique, inverse in columns:
        codes = codes * len(unique) + inverse
    codes = np.unique(codes, return_inverse=True)[1]
    return np.where(known, codes, -1)


def evaluate(
    scores: ScoreRows,
    labels: Int[np.ndarray, " p"],
    groups: Int[np.ndarray, "..."] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> Evaluation:
    """Ranks the relevant pages of every labelled page among all other pages.

    Args:
      scores: larger is nearer; see `score_rows`.
      labels: int64 [p], -1 = unknown (`encode_labels`).
      groups: int64 [p], -1 = no group; pages of the query's group are excluded from its gallery
        (the same sheet, the same source). None excludes only the query.
      ks: cut-offs of `hits`.

    Raises:
      ValueError: the lengths differ, or a k is below 1.
    """
    labels = np.asarray(labels)
    groups = np.full(len(labels), -1) if groups is None else np.asarray(groups)
    if labels.shape != groups.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and groups {groups.shape} must both be [p]")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {tuple(ks)}: give cut-offs of at least 1")
    p = len(labels)
    members = Members(labels, groups)
    queries = np.flatnonzero(labels >= 0)
    relevant = members.count_relevant(queries)
    without_relevant, queries = queries[relevant == 0], queries[relevant > 0]
    # A chunk has queries with similar numbers of pages of their label, so that padding is small.
    queries = queries[np.argsort(members.count_same_label(queries), kind="stable")]
    parts = [_metrics(scores(rows), rows, members, groups, ks) for rows in chunks(queries, p)]
    order = np.argsort(queries)
    keys = ("relevant", "ap", "ndcg", "first", "hits", "gallery")
    empty = _metrics(np.zeros((0, p), np.float32), queries[:0], members, groups, ks)
    columns = {key: np.concatenate([f[key] for f in [empty, *parts]])[order] for key in keys}
    return Evaluation(
        rows=queries[order],
        without_relevant=without_relevant,
        distractors=np.flatnonzero(labels < 0),
        ks=tuple(ks),
        **columns,
    )


def summarize(evaluation: Evaluation, convention: str = "partners") -> dict[str, float | int]:
    """Means over the queries, as a flat dict (`map`, `ndcg`, `top1`, `soft@5`, `hard@5`...).

    `top<k>` and `soft@k`: at least one of the first k pages is relevant. `hard@k`: all of the first
    k pages are relevant (never true for a query with fewer than k relevant pages). `precision@k`:
    fraction of relevant pages among the first k.

    mAP and nDCG always average over the queries with a relevant page. The convention `partners`
    does so for the other metrics too; `published` (reference: section 7) counts labelled pages
    without a relevant page as failures in soft, hard and precision@k; `hisir19` (the competition's
    evaluator) also in Top-k. If every writer has several pages (Historical-WI) the three agree.

    Returns:
      the metrics and the counts `queries`, `queries_without_partner` and `distractors`; without
      queries only the counts.

    Raises:
      ValueError: the convention is unknown.
    """
    check_choice("convention", convention, CONVENTIONS)
    e = evaluation
    counts = {
        "queries": len(e.rows),
        "queries_without_partner": len(e.without_relevant),
        "distractors": len(e.distractors),
    }
    if not len(e.rows):
        return counts
    labelled = len(e.rows) + len(e.without_relevant)
    count = len(e.rows) if convention == "partners" else labelled
    count_top = labelled if convention == "hisir19" else len(e.rows)
    figures = {"map": float(e.ap.mean()), "ndcg": float(e.ndcg.mean())}
    for name, (hits, maximum) in _hits_of_queries(e).items():
        queries = count_top if name.startswith("top") else count
        figures[name] = float(hits.sum() / (maximum * queries))
    return {**figures, **counts}


def _hits_of_queries(e: Evaluation) -> dict[str, tuple[np.ndarray, int]]:
    """The contribution [n] of each query to the metrics at k, and its possible maximum."""
    contributions = {}
    for hits, k in zip(e.hits.T, e.ks, strict=True):
        contributions |= {f"top{k}": (hits > 0, 1), f"soft@{k}": (hits > 0, 1)}
        contributions |= {f"hard@{k}": (hits == k, 1), f"precision@{k}": (hits, k)}
    return contributions


def confidence(
    evaluation: Evaluation,
    labels: Int[np.ndarray, " p"],
    samples: int,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals of mAP and Top-1 over the queries with a relevant page.

    Whole labels are drawn with replacement, not queries: the results of the pages of one writer
    depend on each other, and intervals over queries would be too narrow.

    Returns:
      low and high end for `map` and `top1`; empty if the queries have fewer than two labels.
    """
    codes, inverse = np.unique(labels[evaluation.rows], return_inverse=True)
    n = len(codes)
    if n < 2 or samples < 1:
        return {}
    sums = [np.bincount(inverse, w, n) for w in (None, evaluation.ap, evaluation.first == 1)]
    rng = np.random.default_rng(seed)
    totals = rng.multinomial(n, np.full(n, 1 / n), size=samples) @ np.stack(sums, 1)
    means = totals[:, 1:] / totals[:, :1]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {key: (float(low[i]), float(high[i])) for i, key in enumerate(("map", "top1"))}


def difference(
    a: Evaluation,
    b: Evaluation,
    labels: Int[np.ndarray, " p"],
    samples: int,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The mAP of `a` minus the mAP of `b`, with its paired bootstrap interval.

    Whole labels are drawn, as in `confidence`; each draw is used for both evaluations.

    Args:
      a, b: evaluations of the same queries.
      labels: int64 [p], labels of all pages.

    Returns:
      the difference, the low and the high end of its interval.

    Raises:
      ValueError: the queries of `a` and `b` differ, or they have fewer than two labels.
    """
    if not np.array_equal(a.rows, b.rows):
        raise ValueError("the two evaluations have different queries")
    codes, inverse = np.unique(labels[a.rows], return_inverse=True)
    n = len(codes)
    if n < 2:
        raise ValueError(f"the queries have {n} label; an interval needs two")
    count, gain = (np.bincount(inverse, w, n) for w in (None, a.ap - b.ap))
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    means = (draws @ gain) / (draws @ count)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(gain.sum() / count.sum()), float(low), float(high)


def per_label(
    evaluation: Evaluation, labels: Int[np.ndarray, " p"]
) -> dict[int, dict[str, float | int]]:
    """The metrics of `summarize`, and Top-1, averaged over the queries of each label."""
    e = evaluation
    columns = {
        "map": (e.ap, 1),
        "ndcg": (e.ndcg, 1),
        "top1": (e.first == 1, 1),
        **_hits_of_queries(e),
    }
    codes, inverse = np.unique(labels[e.rows], return_inverse=True)
    count = np.bincount(inverse, minlength=len(codes))
    means = {
        name: np.bincount(inverse, x, len(codes)) / (maximum * count)
        for name, (x, maximum) in columns.items()
    }
    return {
        int(code): {name: float(x[i]) for name, x in means.items()} | {"queries": int(count[i])}
        for i, code in enumerate(codes)
    }


def _metrics(
    block: np.ndarray, rows: np.ndarray, members: Members, groups: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """The metrics of the queries `rows` [q] from their scores `block` [q, p]."""
    same_label, real = members.table(rows)
    ranks = count_ranks(hide_own(block, rows, groups), same_label, real)
    ranks = np.where(real, ranks, np.iinfo(np.int64).max)
    ranks.sort(axis=1)
    count = members.count_relevant(rows)
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
        "gallery": members.count_gallery(rows),
    }
