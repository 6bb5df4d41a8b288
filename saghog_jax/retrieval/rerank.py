"""Re-ranking: new features of pages from their neighbours. Report it beside the plain metrics.

Every method uses all evaluated pages at once (it is transductive) and no labels. Axis letters: p
pages, d width of a descriptor, k neighbours.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int

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

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Float32 values per tile.
_TILE_VALUES = 1 << 17
METHODS = ("none", "sgr", "krnn", "gnn", "qe")
SEQUENTIAL = ("sgr", "gnn")  # methods whose published form updates row after row
# The parameters of each method, and the values that `choose` tries.
GRID = {
    "sgr": {"k": (1, 2, 3, 4), "layers": (1, 2), "gamma": (0.1, 0.2, 0.4, 0.8)},
    "krnn": {"k": (1, 2, 3, 4, 6, 8)},
    "gnn": {"k": (1, 2, 3, 4), "k1": (3, 5, 8, 12), "layers": (1, 2)},
    "qe": {"k": (1, 2, 3, 4, 6), "alpha": (0.0, 1.0, 3.0)},
}


def rerank(
    method: str,
    x: Float[np.ndarray, "p d"],
    params: Mapping[str, float],
    groups: Int[np.ndarray, " p"] | None = None,
    sequential: bool = False,
) -> ScoreRows:
    """Scores after re-ranking.

    Args:
      method: one of METHODS.
      x: [p, d], unit vectors.
      params: values of the parameters in GRID; others are ignored.
      groups: int64 [p]; pages of the same group (>= 0) are never neighbours.
      sequential: use the published update of `sgr` and `gnn`, which leaks the order of the pages.

    Raises:
      ValueError: the method is unknown, a parameter is outside of its range, or `sequential` is
        used with another method or with groups.
    """
    check_choice("re-ranking", method, METHODS)
    x = np.asarray(x, np.float32)
    own_params = {name: params[name] for name in GRID.get(method, {})}
    for name, value in own_params.items():
        if value < 0 or (value == 0 and name != "alpha"):
            raise ValueError(f"re-ranking {method} with {name} {value}; it must be positive")
    if sequential and (method not in SEQUENTIAL or groups is not None):
        raise ValueError(
            f"re-ranking {method!r} row after row: only {' and '.join(SEQUENTIAL)} have this form, "
            "and only without groups"
        )
    if method == "sgr":
        return score_rows(sgr(x, **own_params, groups=groups, sequential=sequential))
    if method == "krnn":
        return score_rows(krnn(x, **own_params, groups=groups))
    if method == "gnn":
        return score_rows(gnn(x, **own_params, groups=groups, sequential=sequential))
    if method == "qe":
        expanded = query_expansion(x, **own_params, groups=groups)
        return lambda rows: expanded[rows] @ x.T
    return score_rows(x)


def choose(
    method: str,
    x: Float[np.ndarray, "p d"],
    labels: Int[np.ndarray, " p"],
    groups: Int[np.ndarray, " p"] | None = None,
) -> dict[str, float]:
    """The parameters of GRID with the best mAP on these pages: training pages, not test pages.

    Raises:
      ValueError: no page has a relevant page.
    """
    names = list(GRID[method])
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for values in itertools.product(*GRID[method].values()):
        params = dict(zip(names, values))
        figures = summarize(evaluate(rerank(method, x, params, groups), labels, groups, (1,)))
        if not figures["queries"]:
            raise ValueError("re-ranking parameters chosen on pages without any relevant page")
        if figures["map"] > best[0]:
            best = figures["map"], params
    return best[1]


def sgr(
    x: Float32[np.ndarray, "p d"],
    k: int,
    layers: int,
    gamma: float,
    groups: Int[np.ndarray, " p"] | None = None,
    sequential: bool = False,
) -> Float32[np.ndarray, "p p"]:
    """Similarity graph re-ranking (reference: section 8): features [p, p], unit rows.

    A = exp(-(1 - S)^2 / gamma). Each layer makes A symmetric and adds to every row the rows of its
    k nearest pages, weighted by their similarity. All rows are updated at once. Needs memory for
    two float32 arrays [p, p].

    Args:
      x: [p, d], unit vectors.
      k: number of neighbours.
      layers: number of layers.
      gamma: width of the kernel.
      groups: as for `rerank`.
      sequential: the published update, for comparison only. It works in place, row after row: each
        row reads the updated rows before it. So the result depends on the order of the pages and
        leaks labels if the pages are sorted by writer. The first of k + 1 neighbours is assumed to
        be the page itself.
    """

    def kernel(part: np.ndarray) -> None:
        np.subtract(1, part, out=part)
        np.square(part, out=part)
        part *= np.float32(-1 / gamma)
        np.exp(part, out=part)

    # Later steps need few similarities: they are recomputed, not stored.
    a = gram(x, kernel)
    for layer in range(layers):
        a = _symmetric(a) if layer else a
        if sequential:
            neighbours = top_columns(a.copy(), k + 1)[0][:, 1:]
            _update_in_place(a, neighbours, _similarity(x, np.arange(len(x)), neighbours))
        else:
            a = _add_neighbours(a, x, k, groups)
    return a


def _add_neighbours(a: np.ndarray, x: np.ndarray, k: int, groups: np.ndarray | None) -> np.ndarray:
    """Adds the rows of its k nearest pages to every row, weighted; unit rows [p, p]."""
    out = np.empty_like(a)
    k = min(k, len(a) - 1)

    def update(tile: slice) -> None:
        rows = np.arange(tile.start, tile.stop)
        block = out[tile]
        block[:] = a[tile]
        neighbours, value = top_columns(_hide_group(block, rows, groups, own=-np.inf), k)
        weight = _similarity(x, rows, neighbours)
        weight[np.isneginf(value)] = 0
        block[:] = a[tile]
        near = np.empty_like(block)
        for j in range(k):
            np.take(a, neighbours[:, j], axis=0, out=near, mode="clip")
            near *= weight[:, j, None]
            block += near
        _l2_in_place(block)

    in_tiles(update, len(a), _TILE_VALUES // len(a))
    return out


def _similarity(x: np.ndarray, rows: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Inner products of each row [q] with its neighbours [q, k], float32 [q, k]."""
    products = [np.einsum("qd,qd->q", x[rows], x[column]) for column in neighbours.T]
    return np.stack(products, 1) if products else np.zeros(neighbours.shape, np.float32)


def gnn(
    x: Float32[np.ndarray, "p d"],
    k: int,
    k1: int,
    layers: int,
    groups: Int[np.ndarray, " p"] | None = None,
    sequential: bool = False,
) -> Float32[np.ndarray, "p p"]:
    """Graph re-ranking on k1 neighbours (reference: section 8): features [p, p], unit rows.

    A is 1 between a page and itself and between a page and its k1 nearest pages. Each layer makes A
    symmetric and adds to every row the rows of the page itself and of its k nearest pages in A,
    weighted by squared similarity. All rows are updated at once; of pages with equal values in A
    the more similar one is nearer.

    Args:
      x: [p, d], unit vectors.
      k: number of neighbours in a layer.
      k1: number of neighbours in the initial A.
      layers: number of layers.
      groups: as for `rerank`.
      sequential: the published update, in place as in `sgr`, for comparison only. The published
        order of equal values depends on a library's sorting routine and is not reproduced.
    """
    p = len(x)
    similarity = x @ x.T
    near = np.empty((p, p), np.int32)
    for rows in chunks(np.arange(p), p):
        # The page itself first, then by similarity, equal ones by index.
        block = _hide_group(similarity[rows], rows, groups, own=np.inf)
        near[rows] = np.argsort(-block, axis=1, kind="stable")
    a = np.zeros((p, p), np.float32)
    np.put_along_axis(a, near[:, : k1 + 1], 1, axis=1)
    if groups is not None:
        a[_same_group(groups)] = 0
    np.fill_diagonal(a, 1)
    for _ in range(layers):
        a = _symmetric(a)
        neighbours = np.empty((p, min(k, p - 1) + 1), np.int64)
        for rows in chunks(np.arange(p), p):
            by_similarity = np.take_along_axis(a[rows], near[rows], 1)
            by_similarity[:, 0] = np.inf
            columns, _ = top_columns(by_similarity, neighbours.shape[1])
            neighbours[rows] = np.take_along_axis(near[rows], columns, 1)
        weight = np.square(np.take_along_axis(similarity, neighbours, 1))
        if groups is not None:
            same = (groups[neighbours] == groups[:, None]) & (groups[:, None] >= 0)
            weight[same & (neighbours != np.arange(p)[:, None])] = 0
        if sequential:
            _update_in_place(a, neighbours, weight)
        else:
            a += _weight_matrix(neighbours, weight) @ a
            _l2_in_place(a)
    return a


def krnn(
    x: Float32[np.ndarray, "p d"], k: int, groups: Int[np.ndarray, " p"] | None = None
) -> Float32[np.ndarray, "p d"]:
    """k reciprocal neighbours (reference: section 8): features [p, d], unit rows.

    The feature of a page is the mean of the page and its reciprocal neighbours: of its k nearest
    pages those that have the page among their own k nearest.
    """
    neighbours, _ = nearest(score_rows(x), np.arange(len(x)), groups, len(x), k)
    near = _weight_matrix(neighbours, np.ones(neighbours.shape, np.float32))
    reciprocal = near.multiply(near.T)
    count = 1 + np.asarray(reciprocal.sum(1))
    return l2_normalize((x + reciprocal @ x) / count.reshape(-1, 1).astype(np.float32))


def query_expansion(
    x: Float32[np.ndarray, "p d"], k: int, alpha: float, groups: Int[np.ndarray, " p"] | None = None
) -> Float32[np.ndarray, "p d"]:
    """Query expansion: x + sum over the k nearest of similarity^alpha x_j, [p, d], unit rows.

    The result is used for queries, the plain x for the gallery. alpha 0 is average query expansion;
    larger values give more weight to near neighbours (Radenovic et al. 2018). Neighbours of
    negative similarity have weight 0.
    """
    neighbours, similarity = nearest(score_rows(x), np.arange(len(x)), groups, len(x), k)
    weight = np.where(similarity > 0, similarity, 0) ** np.float32(alpha) * (similarity > 0)
    return l2_normalize(x + _weight_matrix(neighbours, weight.astype(np.float32)) @ x)


def _weight_matrix(neighbours: np.ndarray, weight: np.ndarray) -> "csr_array":
    """[p, p] with `weight` [p, k] in the columns `neighbours` [p, k]; -1 is no neighbour."""
    # Imported late: most retrievals do not re-rank.
    from scipy.sparse import csr_array

    p, k = neighbours.shape
    kept = np.where(neighbours < 0, 0, weight)
    starts = np.arange(0, p * k + 1, k) if k else np.zeros(p + 1, np.int64)
    columns = np.maximum(neighbours, 0)
    return csr_array((kept.ravel(), columns.ravel(), starts), shape=(p, p))


def _hide_group(
    block: np.ndarray, rows: np.ndarray, groups: np.ndarray | None, own: float
) -> np.ndarray:
    """Sets the scores [q, p] of the own group to -inf and of the page itself to `own`, in place."""
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


def _update_in_place(a: np.ndarray, neighbours: np.ndarray, weight: np.ndarray) -> None:
    """The published update: each row reads the updated rows before it; then unit rows."""
    for i, near in enumerate(neighbours):
        a[i] += a[:, near] @ weight[i]
    _l2_in_place(a)
