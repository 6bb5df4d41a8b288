"""VLAD vectors from explicit residuals, one cluster after another: exact next to a centroid.

The short forms of `netrvlad` take |x - c|^2 from |x|^2 + |c|^2 - 2 x c, whose rounding error is
about 2^-24 of |x|^2 + |c|^2. Next to a centroid nothing else is left of the difference. The forms
here subtract first. They hold one residual of each patch at a time, [b, d], and recompute it in the
backward pass; their time is that of all residuals, [b, v, d].

Axis letters: b patches, d width, v clusters, s segments, g bags, k directions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saghog_jax.models.arrays import AnyArray

EPSILON = 1e-12  # Lower bound of norms: the zero vector stays zero.
HIGHEST = jax.lax.Precision.HIGHEST  # No TF32 or bfloat16: differences of large numbers.


def l2_normalize(
    x: Float[AnyArray, "*shape"], axis: int | tuple[int, ...] = -1
) -> Float[Array, "*shape"]:
    """x / max(|x|, 1e-12); a zero vector stays zero, with zero gradient."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * inverse_norm(square)


def inverse_norm(square: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """1 / max(norm, 1e-12) of squared norms; 0 where the norm is 0."""
    inverse = jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))
    return jnp.where(square > 0, inverse, jnp.zeros_like(inverse))


def page_sum(
    assignment: Float[AnyArray, "b v"],
    x: Float[AnyArray, "b d"],
    centroids: Float[AnyArray, "v d"],
    segments: Float[AnyArray, "s b"],
    intra_normalize: bool,
) -> Float[Array, "s v d"]:
    """As `netrvlad.page_sum`."""
    unit = _unit_residuals(assignment, x, centroids, intra_normalize)

    def part(a: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.matmul(segments, unit(a, c), precision=HIGHEST)

    return _each_cluster(part, assignment, centroids).swapaxes(0, 1)


def bag_sum(
    assignment: Float[AnyArray, "b v"],
    x: Float[AnyArray, "b d"],
    centroids: Float[AnyArray, "v d"],
    patches_per_bag: int,
    intra_normalize: bool,
) -> Float[Array, "g v d"]:
    """Sums of the unit VLAD vectors of bags of successive patches, see `netrvlad.bag_gram`."""
    unit = _unit_residuals(assignment, x, centroids, intra_normalize)

    def part(a: jax.Array, c: jax.Array) -> jax.Array:
        return unit(a, c).reshape(-1, patches_per_bag, x.shape[1]).sum(1)

    return _each_cluster(part, assignment, centroids).swapaxes(0, 1)


def inner_products(
    assignment: Float[AnyArray, "b v"],
    x: Float[AnyArray, "b d"],
    centroids: Float[AnyArray, "v d"],
    directions: Float[AnyArray, "k v d"],
    intra_normalize: bool,
) -> Float[Array, "b k"]:
    """As `netrvlad.inner_products`."""
    unit = _unit_residuals(assignment, x, centroids, intra_normalize)

    def part(a: jax.Array, c: jax.Array, towards: jax.Array) -> jax.Array:
        return jnp.matmul(unit(a, c), towards.T, precision=HIGHEST)

    start = jnp.zeros((len(x), len(directions)), x.dtype)
    return _sum_of_clusters(part, start, assignment, centroids, jnp.swapaxes(directions, 0, 1))


def cosine_gram(
    assignment: Float[AnyArray, "b v"],
    x: Float[AnyArray, "b d"],
    centroids: Float[AnyArray, "v d"],
    intra_normalize: bool,
) -> Float[Array, "b b"]:
    """As `netrvlad.cosine_gram`."""
    unit = _unit_residuals(assignment, x, centroids, intra_normalize)

    def part(a: jax.Array, c: jax.Array) -> jax.Array:
        y = unit(a, c)
        return jnp.matmul(y, y.T, precision=HIGHEST)

    return _sum_of_clusters(part, jnp.zeros((len(x),) * 2, x.dtype), assignment, centroids)


def _unit_residuals(
    assignment: AnyArray, x: AnyArray, centroids: AnyArray, intra_normalize: bool
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function of a_v [b] and c_v [d] that gives cluster v of the unit VLAD vectors, [b, d]."""

    def residual(a: jax.Array, c: jax.Array) -> jax.Array:
        y = a[:, None] * (x - c)
        return l2_normalize(y) if intra_normalize else y

    def square(a: jax.Array, c: jax.Array) -> jax.Array:
        y = residual(a, c)
        return jnp.sum(y * y, axis=1)

    squares = _sum_of_clusters(square, jnp.zeros(len(x), x.dtype), assignment, centroids)
    inverse = inverse_norm(squares)[:, None]
    return lambda a, c: residual(a, c) * inverse


def _each_cluster(
    part: Callable[..., jax.Array], assignment: AnyArray, centroids: AnyArray
) -> jax.Array:
    """part(a_v, c_v) of every cluster, stacked; its residuals are recomputed for gradients."""
    part = jax.checkpoint(part)
    return jax.lax.map(lambda item: part(*item), (assignment.T, centroids))


def _sum_of_clusters(
    part: Callable[..., jax.Array], start: jax.Array, assignment: AnyArray, *others: AnyArray
) -> jax.Array:
    """Sum of part(a_v, ...) over the clusters; its residuals are recomputed for gradients."""
    part = jax.checkpoint(part)
    return jax.lax.scan(
        lambda total, item: (total + part(*item), None), start, (assignment.T, *others)
    )[0]
