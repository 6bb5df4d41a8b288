"""Exact nearest pages in a gallery of any size, in chunks on the device.

Axis letters: q queries, p pages of the gallery, g pages of a chunk, d width, k results.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from saghog_jax.retrieval.aggregate import l2_normalize

# Bytes of the gallery on the device at a time: so many fit into the cache of a CPU.
_CHUNK_BYTES = 16 << 20
# Queries per chunk.
_QUERIES = 1024

# Scores [q, g] of queries [q, d] and a chunk: one array [g, ...] for each array of the gallery.
Scores = Callable[[jax.Array, tuple[jax.Array, ...]], jax.Array]


def search(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "p width"],
    k: int,
    own: Int[np.ndarray, " q"] | None = None,
    query_groups: Int[np.ndarray, " q"] | None = None,
    gallery_groups: Int[np.ndarray, " p"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k pages of largest cosine similarity; pages of equal similarity in the order of rows.

    Args:
      queries: [q, d].
      gallery: float32 or float16 [p, d], may be memory-mapped: it is read from front to back once
        per 1,024 queries and is never in memory as a whole. Chunks become float32 on the device.
      k: number of pages per query.
      own: int64 [q], row of the query in the gallery, -1 if it is not in the gallery.
      query_groups, gallery_groups: int64 [q] and [p]; pages of the query's group (>= 0) are
        excluded. Give both or none.

    Returns:
      rows int64 [q, k'] and similarities float32 [q, k'], best first, k' = min(k, p); -1 and -inf
      where no page is left.

    Raises:
      ValueError: the widths differ, the gallery is empty, or k is below 1.
    """
    check_sizes(queries, gallery, k)
    unit = l2_normalize(np.asarray(queries, np.float32))
    return scan(unit, [gallery], _cosines, 4, k, own, query_groups, gallery_groups)


def check_sizes(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "p width"], k: int
) -> None:
    """Checks that a search is possible.

    Raises:
      ValueError: the widths differ, the gallery is empty, or k is below 1.
    """
    (_, d), (p, width) = queries.shape, gallery.shape
    if width != d:
        raise ValueError(f"queries of width {d} against a gallery of width {width}")
    if p < 1 or k < 1:
        raise ValueError(f"the {k} nearest of {p} pages: both must be at least 1")


def scan(
    queries: np.ndarray,
    gallery: Sequence[np.ndarray],
    scores: Scores,
    value_bytes: int,
    k: int,
    own: Int[np.ndarray, " q"] | None = None,
    query_groups: Int[np.ndarray, " q"] | None = None,
    gallery_groups: Int[np.ndarray, " p"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k pages of largest score, with one pass over the gallery per 1,024 queries.

    Args:
      queries: [q, d].
      gallery: arrays with a row per page; the first one [p, d].
      scores: compares queries with a chunk of these arrays; traced, so a function of a module.
      value_bytes: bytes of a value of the first array on the device.
      k, own, query_groups, gallery_groups: as for `search`.

    Returns:
      rows int64 [q, k'] and scores float32 [q, k'], as for `search`.
    """
    q, (p, d) = len(queries), gallery[0].shape
    k = min(k, p)
    own = np.full(q, -1) if own is None else own
    query_groups = np.full(q, -1) if query_groups is None else query_groups
    gallery_groups = np.full(p, -1) if gallery_groups is None else gallery_groups
    step = int(max(k, min(p, _CHUNK_BYTES // (value_bytes * d))))
    rows = np.empty((q, k), np.int64)
    values = np.empty((q, k), np.float32)
    for start in range(0, q, _QUERIES):
        part = slice(start, start + _QUERIES)
        device_queries = (
            jnp.asarray(queries[part]),
            jnp.asarray(own[part], jnp.int32),
            jnp.asarray(query_groups[part], jnp.int32),
        )
        shape = len(queries[part]), k
        best = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
        for first in range(0, p, step):
            # The last chunk starts earlier, so that all have one shape; repeated pages are hidden.
            begin = max(0, min(first, p - step))
            chunk = tuple(jnp.asarray(array[begin : begin + step]) for array in gallery)
            groups = jnp.asarray(gallery_groups[begin : begin + step], jnp.int32)
            best = _merge(best, *device_queries, chunk, groups, begin, first, k=k, scores=scores)
        values[part], rows[part] = (np.asarray(array) for array in best)
    return np.where(np.isneginf(values), -1, rows), values


def _cosines(queries: jax.Array, chunk: tuple[jax.Array, ...]) -> jax.Array:
    x = chunk[0].astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=1))
    return jnp.matmul(queries, x.T, precision="highest") / jnp.maximum(norm, 1e-12)


@partial(jax.jit, static_argnames=("k", "scores"), donate_argnums=0)
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    own: jax.Array,
    query_groups: jax.Array,
    chunk: tuple[jax.Array, ...],
    groups: jax.Array,
    begin: jax.Array,
    first: jax.Array,
    *,
    k: int,
    scores: Scores,
) -> tuple[jax.Array, jax.Array]:
    """Merges the best pages so far with those of a chunk; equal ones stay in the order of rows."""
    row = jnp.arange(chunk[0].shape[0], dtype=jnp.int32) + begin
    same = (query_groups[:, None] == groups) & (query_groups[:, None] >= 0)
    hidden = same | (row == own[:, None]) | (row < first)
    block = jnp.where(hidden, -jnp.inf, scores(queries, chunk))
    values, columns = jax.lax.top_k(block, min(k, chunk[0].shape[0]))
    both = jnp.concatenate([best[0], values], axis=1)
    rows = jnp.concatenate([best[1], row[columns]], axis=1)
    values, columns = jax.lax.top_k(both, k)
    return values, jnp.take_along_axis(rows, columns, axis=1)
