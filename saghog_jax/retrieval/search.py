"""Exact nearest pages in a gallery of any size, in chunks on the device.

Axis letters: q queries, p pages of the gallery, g pages of a chunk, d width, k results.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

# Bytes of the gallery on the device at a time: so many fit into the cache of a CPU.
_CHUNK_BYTES = 16 << 20
# Queries per chunk.
_QUERIES = 1024


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
      queries: float32 [q, d].
      gallery: float32 [p, d], may be memory-mapped: it is read from front to back once per 1,024
        queries and is never in memory as a whole.
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
    (q, d), (p, width) = queries.shape, gallery.shape
    if width != d:
        raise ValueError(f"queries of width {d} against a gallery of width {width}")
    if p < 1 or k < 1:
        raise ValueError(f"the {k} nearest of {p} pages: both must be at least 1")
    k = min(k, p)
    own = np.full(q, -1) if own is None else own
    query_groups = np.full(q, -1) if query_groups is None else query_groups
    gallery_groups = np.full(p, -1) if gallery_groups is None else gallery_groups
    step = int(max(k, min(p, _CHUNK_BYTES // (4 * d))))
    rows = np.empty((q, k), np.int64)
    values = np.empty((q, k), np.float32)
    for start in range(0, q, _QUERIES):
        part = slice(start, start + _QUERIES)
        x = np.asarray(queries[part], np.float32)
        device_queries = (
            jnp.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)),
            jnp.asarray(own[part], jnp.int32),
            jnp.asarray(query_groups[part], jnp.int32),
        )
        best = jnp.full((len(x), k), -jnp.inf, jnp.float32), jnp.full((len(x), k), -1, jnp.int32)
        for first in range(0, p, step):
            # The last chunk starts earlier, so that all have one shape; repeated pages are hidden.
            begin = max(0, min(first, p - step))
            chunk = jnp.asarray(gallery[begin : begin + step])
            groups = jnp.asarray(gallery_groups[begin : begin + step], jnp.int32)
            best = _merge(best, *device_queries, chunk, groups, begin, first, k=k)
        values[part], rows[part] = (np.asarray(array) for array in best)
    return np.where(np.isneginf(values), -1, rows), values


@partial(jax.jit, static_argnames="k", donate_argnums=0)
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    own: jax.Array,
    query_groups: jax.Array,
    chunk: jax.Array,
    groups: jax.Array,
    begin: jax.Array,
    first: jax.Array,
    *,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """Merges the best pages so far with those of a chunk; equal ones stay in the order of rows."""
    norm = jnp.sqrt(jnp.sum(jnp.square(chunk), axis=1))
    scores = jnp.matmul(queries, chunk.T, precision="highest") / jnp.maximum(norm, 1e-12)
    row = jnp.arange(chunk.shape[0], dtype=jnp.int32) + begin
    same = (query_groups[:, None] == groups) & (query_groups[:, None] >= 0)
    hidden = same | (row == own[:, None]) | (row < first)
    values, columns = jax.lax.top_k(jnp.where(hidden, -jnp.inf, scores), min(k, chunk.shape[0]))
    both = jnp.concatenate([best[0], values], axis=1)
    rows = jnp.concatenate([best[1], row[columns]], axis=1)
    values, columns = jax.lax.top_k(both, k)
    return values, jnp.take_along_axis(rows, columns, axis=1)
