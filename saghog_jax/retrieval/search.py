"""Exact nearest pages of a gallery of any size, in chunks on the device.

Axis letters: q queries, p pages of the gallery, g pages of a chunk, d width, k results.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

# Bytes of the gallery that are on the device at a time: what a cache holds is read fastest.
_CHUNK_BYTES = 16 << 20
# Queries that are compared with a chunk at a time.
_QUERIES = 1024


def search(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "p width"],
    k: int,
    own: Int[np.ndarray, " q"] | None = None,
    query_groups: Int[np.ndarray, " q"] | None = None,
    gallery_groups: Int[np.ndarray, " p"] | None = None,
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """The k pages of largest cosine similarity, equals by row.

    Args:
      queries: float32 [q, d].
      gallery: float32 [p, d], may be memory-mapped: it is read once a thousand queries, front to
        back, and never held.
      own: int64 [q], the row of the gallery that is the query itself, -1 where it is not in it.
      query_groups, gallery_groups: int64 [q] and [p]; pages of the query's group (>= 0) are left
        out. Both or none.

    Returns:
      rows int64 [q, k'] and similarities float32 [q, k'], best first, k' = min(k, p); -1 and -inf
      where nothing is left.

    Raises:
      ValueError: widths that differ, an empty gallery, k below 1.
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
        mine = (
            jnp.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)),
            jnp.asarray(own[part], jnp.int32),
            jnp.asarray(query_groups[part], jnp.int32),
        )
        best = jnp.full((len(x), k), -jnp.inf, jnp.float32), jnp.full((len(x), k), -1, jnp.int32)
        for first in range(0, p, step):
            # The last chunk reaches back, so that all have one shape; pages seen twice are hidden.
            begin = max(0, min(first, p - step))
            chunk = jnp.asarray(gallery[begin : begin + step])
            groups = jnp.asarray(gallery_groups[begin : begin + step], jnp.int32)
            best = _merge(best, *mine, chunk, groups, begin, first, k=k)
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
    """The better of what was found and what a chunk holds; equals stay in the order of rows."""
    norm = jnp.sqrt(jnp.sum(jnp.square(chunk), axis=1))
    scores = jnp.matmul(queries, chunk.T, precision="highest") / jnp.maximum(norm, 1e-12)
    row = jnp.arange(chunk.shape[0], dtype=jnp.int32) + begin
    same = (query_groups[:, None] == groups) & (query_groups[:, None] >= 0)
    hidden = same | (row == own[:, None]) | (row < first)
    values, place = jax.lax.top_k(jnp.where(hidden, -jnp.inf, scores), min(k, chunk.shape[0]))
    both = jnp.concatenate([best[0], values], axis=1)
    rows = jnp.concatenate([best[1], row[place]], axis=1)
    values, place = jax.lax.top_k(both, k)
    return values, jnp.take_along_axis(rows, place, axis=1)
