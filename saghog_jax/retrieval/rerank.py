"""Re-ranking: new features of pages from who is near whom. Report it beside the plain figures.

Every method looks at all evaluated pages at once (it is transductive) and none at labels. Axis
letters: p pages, d width of a descriptor, k neighbours.
"""

import itertools
from collections.abc import Mapping

import numpy as np
from scipy import sparse

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.metrics import evaluate, summarize
from saghog_jax.retrieval.ranking import (
    ScoreRows,
    chunks,
    gram,
    in_tiles,
    nearest,
    score_rows,
    top_columns,
)

# Float32 values that are worked on at a time.
_TILE_VALUES = 1 << 17
METHODS = ("none", "sgr", "krnn", "gnn", "qe")
SEQUENTIAL = ("sgr", "gnn")  # have a published form that updates row after row
# What `choose` tries, for each method the parameters that it has.
GRID = {
    "sgr": {"k": (1, 2, 3, 4), "layers": (1, 2), "gamma": (0.1, 0.2, 0.4, 0.8)},
    "krnn": {"k": (1, 2, 3, 4, 6, 8)},
    "gnn": {"k": (1, 2, 3, 4), "k1": (3, 5, 8, 12), "layers": (1, 2)},
    "qe": {"k": (1, 2, 3, 4, 6), "alpha": (0.0, 1.0, 3.0)},
}


def rerank(
    method: str,
    x: np.ndarray,
    params: Mapping[str, float],
    groups: np.ndarray | None = None,
    sequential: bool = False,
) -> ScoreRows:
    """Scores after re-ranking unit vectors x [p, d]; `params` as in GRID.

    Args:
      groups: int64 [p]; pages of its own group (>= 0) are never among a page's neighbours.
      sequential: the published update of `sgr` and `gnn`, which leaks the order of the pages.

    Raises:
      ValueError: an unknown method, a parameter outside of its range; `sequential` where there is
        no such form, or with groups.
    """
    check_choice("re-ranking", method, METHODS)
    x = np.asarray(x, np.float32)
    mine = {name: params[name] for name in GRID.get(method, {})}
    for name, value in mine.items():
        if value < 0 or (value == 0 and name != "alpha"):
            raise ValueError(f"re-ranking {method} with {name} {value}; it must be positive")
    if sequential and (method not in SEQUENTIAL or groups is not None):
        raise ValueError(
            f"re-ranking {method!r} row after row: only {' and '.join(SEQUENTIAL)} have that form, "
            "and it takes no excluded groups"
        )
    if method == "sgr":
        return score_rows(sgr(x, **mine, groups=groups, sequential=sequential))
    if method == "krnn":
        return score_rows(krnn(x, **mine, groups=groups))
    if method == "gnn":
        return score_rows(gnn(x, **mine, groups=groups, sequential=sequential))
    if method == "qe":
        expanded = query_expansion(x, **mine, groups=groups)
        return lambda rows: expanded[rows] @ x.T
    return score_rows(x)


def choose(
    method: str, x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """The parameters of GRID with the best mAP on these pages: give training pages, not test ones.

    Raises:
      ValueError: no page has a partner to find.
    """
    names = list(GRID[method])
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for values in itertools.product(*GRID[method].values()):
        params = dict(zip(names, values))
        figures = summarize(evaluate(rerank(method, x, params, groups), labels, groups, (1,)))
        if not figures["queries"]:
            raise ValueError("re-ranking parameters chosen on pages none of which has a partner")
        if figures["map"] > best[0]:
            best = figures["map"], params
    return best[1]


def sgr(
    x: np.ndarray,
    k: int,
    layers: int,
    gamma: float,
    groups: np.ndarray | None = None,
    sequential: bool = False,
) -> np.ndarray:
    """Similarity graph re-ranking (reference: section 8): features [p, p], unit rows.

    A = exp(-(1 - S)^2 / gamma); each layer makes A symmetric and adds to every row the rows of its
    k nearest, weighted by their similarity. All rows are updated at once. `sequential` is the
    published code: row after row in place, each reading what the rows before it became, so that the
    result hangs on the order of the pages, and leaks labels where they are sorted by writer; there
    the first of k + 1 neighbours is taken for the page itself. Only for comparison.

    Takes two float32 arrays [p, p].
    """

    def kernel(part: np.ndarray) -> None:
        np.subtract(1, part, out=part)
        np.square(part, out=part)
        part *= np.float32(-1 / gamma)
        np.exp(part, out=part)

    # The similarities that are needed later are few: they are multiplied again, not kept.
    a = gram(x, kernel)
    for layer in range(layers):
        a = _symmetric(a) if layer else a
        if sequential:
            found = top_columns(a.copy(), k + 1)[0][:, 1:]
            _update_in_place(a, found, _similarity(x, np.arange(len(x)), found))
        else:
            a = _spread(a, x, k, groups)
    return a


def _spread(a: np.ndarray, x: np.ndarray, k: int, groups: np.ndarray | None) -> np.ndarray:
    """Every row plus those of its k nearest by their similarity, all at once; unit rows [p, p]."""
    out = np.empty_like(a)
    k = min(k, len(a) - 1)

    def spread(tile: slice) -> None:
        rows = np.arange(tile.start, tile.stop)
        block = out[tile]
        block[:] = a[tile]
        found, value = top_columns(_blocked(block, rows, groups, own=-np.inf), k)
        weight = _similarity(x, rows, found)
        weight[np.isneginf(value)] = 0
        block[:] = a[tile]
        near = np.empty_like(block)
        for j in range(k):
            np.take(a, found[:, j], axis=0, out=near, mode="clip")
            near *= weight[:, j, None]
            block += near
        _l2_in_place(block)

    in_tiles(spread, len(a), _TILE_VALUES // len(a))
    return out


def _similarity(x: np.ndarray, rows: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Inner products of each row [q] with its k pages found [q, k], float32 [q, k]."""
    each = [np.einsum("qd,qd->q", x[rows], x[column]) for column in found.T]
    return np.stack(each, 1) if each else np.zeros(found.shape, np.float32)


def gnn(
    x: np.ndarray,
    k: int,
    k1: int,
    layers: int,
    groups: np.ndarray | None = None,
    sequential: bool = False,
) -> np.ndarray:
    """Graph re-ranking on k1 neighbours (reference: section 8): features [p, p], unit rows.

    A is 1 between a page, itself and its k1 nearest; each layer makes A symmetric and adds to every
    row those of itself and of its k nearest in A, weighted by squared similarity. All rows are
    updated at once, and of equal values of A the more similar page is taken first. `sequential` is
    the published update, in place as that of `sgr`; which of equal values the published code takes
    hangs on the sorting routine of its library, and is not imitated. Only for comparison.
    """
    p = len(x)
    similarity = x @ x.T
    near = np.empty((p, p), np.int32)
    for rows in chunks(np.arange(p), p):
        # Itself first, then by similarity, equals by index.
        block = _blocked(similarity[rows], rows, groups, own=np.inf)
        near[rows] = np.argsort(-block, axis=1, kind="stable")
    a = np.zeros((p, p), np.float32)
    np.put_along_axis(a, near[:, : k1 + 1], 1, axis=1)
    if groups is not None:
        a[_same_group(groups)] = 0
    np.fill_diagonal(a, 1)
    for _ in range(layers):
        a = _symmetric(a)
        found = np.empty((p, min(k, p - 1) + 1), np.int64)
        for rows in chunks(np.arange(p), p):
            by_similarity = np.take_along_axis(a[rows], near[rows], 1)
            by_similarity[:, 0] = np.inf
            place, _ = top_columns(by_similarity, found.shape[1])
            found[rows] = np.take_along_axis(near[rows], place, 1)
        weight = np.square(np.take_along_axis(similarity, found, 1))
        if groups is not None:
            same = (groups[found] == groups[:, None]) & (groups[:, None] >= 0)
            weight[same & (found != np.arange(p)[:, None])] = 0
        if sequential:
            _update_in_place(a, found, weight)
        else:
            a += _weights(found, weight) @ a
            _l2_in_place(a)
    return a


def krnn(x: np.ndarray, k: int, groups: np.ndarray | None = None) -> np.ndarray:
    """k reciprocal neighbours (reference: section 8): features [p, d], unit rows.

    Every page becomes the mean of itself and those of its k nearest that have it among theirs.
    """
    found, _ = nearest(score_rows(x), np.arange(len(x)), groups, len(x), k)
    near = _weights(found, np.ones(found.shape, np.float32))
    both = near.multiply(near.T)
    count = 1 + np.asarray(both.sum(1))
    return l2_normalize((x + both @ x) / count.reshape(-1, 1).astype(np.float32))


def query_expansion(
    x: np.ndarray, k: int, alpha: float, groups: np.ndarray | None = None
) -> np.ndarray:
    """Query expansion: x + sum over the k nearest of similarity^alpha x_j, [p, d], unit rows.

    The result asks, the plain x answers. alpha 0 is average query expansion, larger values trust
    near neighbours more (Radenovic et al. 2018); neighbours of negative similarity add nothing.
    """
    found, similarity = nearest(score_rows(x), np.arange(len(x)), groups, len(x), k)
    weight = np.where(similarity > 0, similarity, 0) ** np.float32(alpha) * (similarity > 0)
    return l2_normalize(x + _weights(found, weight.astype(np.float32)) @ x)


def _weights(found: np.ndarray, weight: np.ndarray) -> sparse.csr_array:
    """[p, p] with `weight` [p, k] at the columns `found` [p, k]; column -1 is none."""
    p, k = found.shape
    kept = np.where(found < 0, 0, weight)
    starts = np.arange(0, p * k + 1, k) if k else np.zeros(p + 1, np.int64)
    return sparse.csr_array((kept.ravel(), np.maximum(found, 0).ravel(), starts), shape=(p, p))


def _blocked(
    block: np.ndarray, rows: np.ndarray, groups: np.ndarray | None, own: float
) -> np.ndarray:
    # Changes `block`, which nobody else has.
    if groups is not None:
        block[(groups[rows, None] == groups) & (groups[rows, None] >= 0)] = -np.inf
    block[np.arange(len(rows)), rows] = own
    return block


def _same_group(groups: np.ndarray) -> np.ndarray:
    return (groups[:, None] == groups) & (groups[:, None] >= 0)


def _symmetric(a: np.ndarray) -> np.ndarray:
    out = np.empty_like(a)

    def half(tile: slice) -> None:
        np.add(a[tile], a.T[tile], out=out[tile])
        out[tile] *= 0.5

    in_tiles(half, len(a), _TILE_VALUES // len(a))
    return out


def _l2_in_place(a: np.ndarray) -> None:
    norm = np.sqrt(np.einsum("ij,ij->i", a, a))
    a /= np.maximum(norm, np.float32(1e-12))[:, None]


def _update_in_place(a: np.ndarray, found: np.ndarray, weight: np.ndarray) -> None:
    """The published update: each row reads what the rows before it have become; then unit rows."""
    for i, near in enumerate(found):
        a[i] += a[:, near] @ weight[i]
    _l2_in_place(a)
