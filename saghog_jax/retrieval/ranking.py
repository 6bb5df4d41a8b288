"""Who is nearest to whom: scores between pages in chunks, and ranked lists without a full sort.

Axis letters: p pages, q queries of a chunk, d width of a descriptor, k ranks of a list.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.input_pipeline.processes.workers import usable_cores

# Scores of some rows against all pages: int64 [q] -> float32 [q, p], larger is nearer.
ScoreRows = Callable[[np.ndarray], np.ndarray]

# Float32 values of a chunk of scores; 16 MiB, and a few times that for what is made of them. Larger
# ones are taken from the system anew each time, whose empty pages cost a fifth of all time.
CHUNK_VALUES = 1 << 22
# Panels of a symmetric product, and side of the tiles in which it is mirrored: 64 KiB.
_PANELS, _TILE = 8, 128
# So many maxima one after the other take less time than a partial sort.
_MAXIMA_UP_TO = 12


@dataclass(frozen=True)
class Ranking:
    """The nearest pages of every query, and what the labels say of them."""

    query_labels: np.ndarray  # int64 [q], -1 = unknown
    labels: np.ndarray  # int64 [p], the same numbers for the gallery
    found: np.ndarray  # int64 [q, k], nearest first, -1 where the gallery is shorter
    distances: np.ndarray  # float32 [q, k]

    def hits(self, row: int) -> list[tuple[int, float]]:
        """The pages that a query lists and their distances."""
        pairs = zip(self.found[row].tolist(), self.distances[row].tolist(), strict=True)
        return [(other, distance) for other, distance in pairs if other >= 0]

    def mark(self, row: int, other: int) -> str:
        """`right` or `wrong`; `unknown` where one of the two has no label."""
        a, b = self.query_labels[row], self.labels[other]
        if a < 0 or b < 0:
            return "unknown"
        return "right" if a == b else "wrong"


def score_rows(descriptors: np.ndarray, metric: str = "cosine") -> ScoreRows:
    """Scores between rows of `descriptors` [p, d], computed for the rows that are asked for.

    The device holds them and multiplies, on CPUs too: jax takes half the time that numpy does.

    `cosine` is the inner product of the L2-normalised rows; `euclidean` orders by Euclidean
    distance (q.g - |g|^2 / 2, float32). On unit vectors both give the same order.

    Raises:
      ValueError: an unknown metric.
    """
    x = np.asarray(descriptors, np.float32)
    if metric == "cosine":
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        unit = jnp.asarray(x / np.maximum(norms, np.float32(1e-12)))
        # A copy, which may be written to.
        return lambda rows: np.array(_products(unit, rows))
    check_choice("metric", metric, ("cosine", "euclidean"))
    half = np.einsum("pd,pd->p", x, x) / 2
    every = jnp.array(x)
    return lambda rows: np.asarray(_products(every, rows)) - half


@jax.jit
def _products(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.matmul(x[rows], x.T, precision="highest")


def gram(x: np.ndarray, each: Callable[[np.ndarray], None]) -> np.ndarray:
    """x x^T of x [p, d], symmetric to the bit: the upper half is multiplied, the lower copied.

    Args:
      each: what is done, in place, to the values of the upper half before they are copied (and to
        some beside it, which are overwritten).
    """
    p = len(x)
    out = np.empty((p, p), x.dtype)
    # Whole tiles, so that all of a row behind the start of its tile is multiplied.
    step = max(1, -(-p // (_PANELS * _TILE))) * _TILE
    for start in range(0, p, step):
        np.matmul(x[start : start + step], x[start:].T, out=out[start : start + step, start:])
    tiles = [slice(start, min(p, start + _TILE)) for start in range(0, p, _TILE)]
    # Long rows of tiles and short ones in turn, so that the threads get equal shares.
    order = [i // 2 if i % 2 == 0 else len(tiles) - 1 - i // 2 for i in range(len(tiles))]

    def mirror(part: slice) -> None:
        for i in order[part]:
            rows = tiles[i]
            each(out[rows, rows.start :])
            for columns in tiles[i + 1 :]:
                out[columns, rows] = out[rows, columns].T
            square = out[rows, rows]
            lower = np.tril_indices(len(square), -1)
            square[lower] = square.T[lower]

    in_threads(mirror, len(tiles))
    return out


def in_threads(work: Callable[[slice], None], rows: int) -> None:
    """Does work(part) for parts of range(rows), one a core at a time: numpy leaves the lock."""
    cores = usable_cores()
    step = max(1, -(-rows // cores))
    parts = [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(cores) as pool:
        # A list, so that what a thread raised is raised here.
        list(pool.map(work, parts))


def in_tiles(work: Callable[[slice], None], rows: int, step: int) -> None:
    """Does work(tile) for tiles of `step` rows (at least one), on all cores."""
    step = max(1, step)

    def part(rows: slice) -> None:
        for start in range(rows.start, rows.stop, step):
            work(slice(start, min(rows.stop, start + step)))

    in_threads(part, rows)


def nearest(
    scores: ScoreRows, rows: np.ndarray, groups: np.ndarray | None, num_pages: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest pages of each row, nearest first, itself and its group left out.

    Returns:
      int64 [len(rows), k'] and their float32 scores, k' = min(k, num_pages - 1); -1 and -inf where
      the gallery of a query is shorter.
    """
    groups = np.full(num_pages, -1) if groups is None else groups
    k = max(0, min(k, num_pages - 1))
    found, values = [], []
    for part in chunks(rows, num_pages):
        block = without_own(scores(part), part, groups)
        keys = (
            np.partition(sort_keys(block), range(k), axis=1)[:, :k]
            if k
            else sort_keys(block)[:, :0]
        )
        index = keys & 0xFFFFFFFF
        value = np.take_along_axis(block, index, 1)
        found.append(np.where(np.isneginf(value), -1, index))
        values.append(value)
    if not found:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    return np.concatenate(found), np.concatenate(values)


def top_columns(block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's k largest values, largest first, equals by column. Overwrites `block`.

    Returns:
      columns int64 [q, k] and values [q, k]; a value of -inf belongs to no column in particular.
    """
    if k > _MAXIMA_UP_TO:
        keys = sort_keys(block)
        if k < keys.shape[1]:
            keys.partition(k, axis=1)
        columns = np.sort(keys[:, :k], axis=1) & 0xFFFFFFFF
        return columns, np.take_along_axis(block, columns, 1)
    every = np.arange(len(block))
    columns, values = np.empty((len(block), k), np.int64), np.empty((len(block), k), block.dtype)
    for j in range(k):
        columns[:, j] = block.argmax(axis=1)
        values[:, j] = block[every, columns[:, j]]
        block[every, columns[:, j]] = -np.inf
    return columns, values


def chunks(rows: np.ndarray, p: int) -> list[np.ndarray]:
    """Splits `rows` so that the scores of a part against p pages stay within CHUNK_VALUES."""
    step = max(1, CHUNK_VALUES // max(1, p))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def without_own(block: np.ndarray, rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Scores [q, p] with -inf, in place, where a page is the query or of the query's group."""
    block[np.arange(len(rows)), rows] = -np.inf
    grouped = np.flatnonzero(groups[rows] >= 0)
    if len(grouped):
        same = groups[rows[grouped], None] == groups
        block[grouped] = np.where(same, -np.inf, block[grouped])
    return block


def sort_keys(block: np.ndarray) -> np.ndarray:
    """int64 [q, p] that sort as (score descending, column ascending); the low 32 bits: the column.

    The bits of a float32 order as integers once those of negative numbers are flipped; no two keys
    of a row are equal, so that a partition is as definite as a stable sort.
    """
    bits = (-block + np.float32(0)).view(np.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.astype(np.int64) << 32) | np.arange(block.shape[1])
