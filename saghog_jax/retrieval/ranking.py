"""Scores between pages in chunks, and ranked lists without a full sort.

Axis letters: p pages, q queries of a chunk, d width of a descriptor, k ranks of a list.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from saghog_jax.input_pipeline.processes.workers import usable_cores

# Scores of the rows against all pages; larger is nearer.
ScoreRows = Callable[[Int[np.ndarray, " q"]], Float32[np.ndarray, "q p"]]

# Float32 values of a chunk of scores: 16 MiB, and a few times that for intermediate results. The
# system would allocate larger chunks anew each time, which costs a fifth of the time.
CHUNK_VALUES = 1 << 22
# From so many products on, scores are computed by jax. For fewer, loading jax takes longer.
_ON_DEVICE_FROM = 1 << 32
# Number of panels of a symmetric product, and side of the tiles that are mirrored: 64 KiB.
_PANELS, _TILE = 8, 128
# Up to so many successive maxima are faster than a partial sort.
_MAXIMA_UP_TO = 12


@dataclass(frozen=True)
class Ranking:
    """The nearest pages of every query, with labels.

    Attributes:
      query_labels: labels of the queries, -1 = unknown.
      labels: labels of the gallery, in the same numbers.
      gallery_rows: nearest first, -1 where the gallery is shorter.
      distances: cosine distances.
    """

    query_labels: Int[np.ndarray, " q"]
    labels: Int[np.ndarray, " p"]
    gallery_rows: Int[np.ndarray, "q k"]
    distances: Float32[np.ndarray, "q k"]

    def hits(self, row: int) -> list[tuple[int, float]]:
        """The nearest pages of a query and their distances."""
        pairs = zip(self.gallery_rows[row].tolist(), self.distances[row].tolist(), strict=True)
        return [(other, distance) for other, distance in pairs if other >= 0]

    def mark(self, row: int, other: int) -> str:
        """`right` for equal labels, `wrong` for others; `unknown` if one of both is missing."""
        a, b = self.query_labels[row], self.labels[other]
        if a < 0 or b < 0:
            return "unknown"
        return "right" if a == b else "wrong"


def score_rows(descriptors: Float[np.ndarray, "p d"], metric: str = "cosine") -> ScoreRows:
    """A function that scores rows of `descriptors` [p, d] against all rows.

    Scores of large collections are computed by jax, on the device; others by numpy. Without an
    accelerator both take nearly the same time.

    Args:
      metric: `cosine`, the inner product of the L2-normalised rows; or `euclidean`, which orders by
        Euclidean distance (q.g - |g|^2 / 2, float32). Both orders agree for unit vectors.

    Raises:
      ValueError: the metric is unknown.
    """
    x = np.asarray(descriptors, np.float32)
    if metric == "cosine":
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        return _products(x / np.maximum(norms, np.float32(1e-12)))
    if metric == "euclidean":
        half = np.einsum("pd,pd->p", x, x) / 2
        products = _products(x)
        return lambda rows: products(rows) - half
    raise ValueError(f"unknown metric {metric!r}, known: cosine, euclidean")


def _products(x: np.ndarray) -> ScoreRows:
    """A function that returns the inner products of some rows of x [p, d] with all rows."""
    p, d = x.shape
    if p * p * d < _ON_DEVICE_FROM:
        return lambda rows: x[rows] @ x.T
    from saghog_jax.retrieval.device_products import products_on_device

    return products_on_device(x)


def gram(
    x: Float[np.ndarray, "p d"], function: Callable[[np.ndarray], None]
) -> Float[np.ndarray, "p p"]:
    """x x^T of x [p, d], symmetric to the bit: the upper half is computed, the lower one copied.

    Args:
      function: applied in place to blocks of the upper half before they are copied (also to some
        values of the lower half, which are overwritten).
    """
    p = len(x)
    out = np.empty((p, p), x.dtype)
    # Panels consist of whole tiles: each row is computed from the start of its tile on.
    step = max(1, -(-p // (_PANELS * _TILE))) * _TILE
    for start in range(0, p, step):
        np.matmul(x[start : start + step], x[start:].T, out=out[start : start + step, start:])
    tiles = [slice(start, min(p, start + _TILE)) for start in range(0, p, _TILE)]
    # Long and short rows of tiles alternate, so that the threads get equal work.
    order = [i // 2 if i % 2 == 0 else len(tiles) - 1 - i // 2 for i in range(len(tiles))]

    def mirror(part: slice) -> None:
        for i in order[part]:
            rows = tiles[i]
            function(out[rows, rows.start :])
            for columns in tiles[i + 1 :]:
                out[columns, rows] = out[rows, columns].T
            square = out[rows, rows]
            lower = np.tril_indices(len(square), -1)
            square[lower] = square.T[lower]

    in_threads(mirror, len(tiles))
    return out


def in_threads(work: Callable[[slice], None], rows: int) -> None:
    """Calls work(part) for parts of range(rows), one per core: numpy releases the lock."""
    cores = usable_cores()
    step = max(1, -(-rows // cores))
    parts = [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(cores) as pool:
        # The list raises the exceptions of the threads here.
        list(pool.map(work, parts))


def in_tiles(work: Callable[[slice], None], rows: int, step: int) -> None:
    """Calls work(tile) for tiles of `step` rows (at least one), on all cores."""
    step = max(1, step)

    def part(rows: slice) -> None:
        for start in range(rows.start, rows.stop, step):
            work(slice(start, min(rows.stop, start + step)))

    in_threads(part, rows)


def nearest(
    scores: ScoreRows,
    rows: Int[np.ndarray, " q"],
    groups: Int[np.ndarray, " p"] | None,
    num_pages: int,
    k: int,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The `k` nearest pages of each row, nearest first, without itself and its group.

    Args:
      scores: see `score_rows`.
      rows: int64 [q], the queries.
      groups: int64 [p], -1 = no group; None excludes only the query.
      num_pages: p.
      k: number of pages per query.

    Returns:
      pages int64 [q, k'] and scores float32 [q, k'], k' = min(k, p - 1); -1 and -inf where the
      gallery of a query is shorter.
    """
    groups = np.full(num_pages, -1) if groups is None else groups
    k = max(0, min(k, num_pages - 1))
    pages, values = [], []
    for part in chunks(rows, num_pages):
        block = hide_own(scores(part), part, groups)
        keys = (
            np.partition(sort_keys(block), range(k), axis=1)[:, :k]
            if k
            else sort_keys(block)[:, :0]
        )
        index = keys & 0xFFFFFFFF
        value = np.take_along_axis(block, index, 1)
        pages.append(np.where(np.isneginf(value), -1, index))
        values.append(value)
    if not pages:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    return np.concatenate(pages), np.concatenate(values)


def top_columns(
    block: Float[np.ndarray, "q p"], k: int
) -> tuple[Int[np.ndarray, "q {k}"], Float[np.ndarray, "q {k}"]]:
    """The k largest values of each row, largest first, equal ones by column. Overwrites `block`.

    Returns:
      columns int64 [q, k] and values [q, k]; the column of a value of -inf is arbitrary.
    """
    if k > _MAXIMA_UP_TO:
        keys = sort_keys(block)
        if k < keys.shape[1]:
            keys.partition(k, axis=1)
        columns = np.sort(keys[:, :k], axis=1) & 0xFFFFFFFF
        return columns, np.take_along_axis(block, columns, 1)
    rows = np.arange(len(block))
    columns, values = np.empty((len(block), k), np.int64), np.empty((len(block), k), block.dtype)
    for j in range(k):
        columns[:, j] = block.argmax(axis=1)
        values[:, j] = block[rows, columns[:, j]]
        block[rows, columns[:, j]] = -np.inf
    return columns, values


def chunks(rows: Int[np.ndarray, " q"], p: int) -> list[Int[np.ndarray, " _"]]:
    """Splits `rows` so that each part has at most CHUNK_VALUES scores against p pages."""
    step = max(1, CHUNK_VALUES // max(1, p))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def hide_own(
    block: Float[np.ndarray, "q p"], rows: Int[np.ndarray, " q"], groups: Int[np.ndarray, " p"]
) -> Float[np.ndarray, "q p"]:
    """Sets the scores [q, p] of the query itself and of its group to -inf, in place."""
    block[np.arange(len(rows)), rows] = -np.inf
    grouped = np.flatnonzero(groups[rows] >= 0)
    if len(grouped):
        same = groups[rows[grouped], None] == groups
        block[grouped] = np.where(same, -np.inf, block[grouped])
    return block


def sort_keys(block: Float32[np.ndarray, "q p"]) -> Int64[np.ndarray, "q p"]:
    """Keys int64 [q, p] that sort by descending score, then column; the low 32 bits are the column.

    The bits of a float32 sort as an integer if those of negative numbers are flipped. The keys of a
    row are distinct, so a partition has a unique result, like a stable sort.
    """
    bits = (-block + np.float32(0)).view(np.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.astype(np.int64) << 32) | np.arange(block.shape[1])
