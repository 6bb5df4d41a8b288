"""NetRVLAD and NetVLAD: soft assignment to clusters, and sums and cosines of the vectors.

Axis letters: b patches, l descriptors of a patch, d width, v clusters, s segments (pages).

The VLAD vector of a patch is the matrix sum_l A_lv (X_l - C_v), [v, d], 51,200 numbers at paper
size. With one descriptor per patch, inner products and sums over patches follow exactly from A, X
and C (`cosine_gram`, `page_sum`) without this vector; with several the vectors are computed.

Functions take assignments [b, v] with descriptors [b, d], or [b, l, v] with [b, l, d]. The
assignment of a descriptor that does not count is zero.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.layers import product
from saghog_jax.models.vit import symmetric_uniform

EPSILON = 1e-12  # Lower bound of norms: the zero vector stays zero.
HIGHEST = jax.lax.Precision.HIGHEST  # No TF32 or bfloat16: differences of large numbers.


class NetRVLAD(nn.Module):
    """Parameters and assignment of NetRVLAD or NetVLAD.

    Attributes:
      num_clusters: v.
      normalized: False is NetRVLAD: assignment from the raw descriptor, no intra-normalisation.
        True is NetVLAD: assignment from the L2-normalised descriptor, residuals of the raw
        descriptor, the residual of each cluster L2-normalised.
      alpha: sharpness of the initial NetVLAD assignment.
      dtype: type of the operands of the assignment's product.
    """

    num_clusters: int = 100
    normalized: bool = False
    alpha: float = 100.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "b *l d"], weights: Float[AnyArray, " b *l"] | None = None
    ) -> Float[Array, "b *l v"]:
        """Assigns descriptors to clusters; the parameter `centroids` is [v, d].

        Args:
          x: float32 [b, d] or [b, l, d].
          weights: [b] or [b, l], factors of the assignment; None is all ones.

        Returns:
          the assignment [b, v] or [b, l, v].
        """
        d = x.shape[-1]
        centroids = self.param("centroids", _unit_rows, (self.num_clusters, d))
        if self.normalized:
            kernel_init, bias_init = _from_centroids(centroids, self.alpha)
            y = l2_normalize(x)
        else:
            # The published NetRVLAD has PyTorch's default initialisation of a convolution.
            kernel_init = bias_init = symmetric_uniform(1 / math.sqrt(d))
            y = x
        kernel = self.param("kernel", kernel_init, (d, self.num_clusters))
        bias = self.param("bias", bias_init, (self.num_clusters,))
        equation = "bld,dv->blv" if x.ndim == 3 else "bd,dv->bv"
        assignment = nn.softmax(product(equation, y, kernel, self.dtype) + bias)
        return assignment if weights is None else assignment * weights[..., None]


def _unit_rows(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    return l2_normalize(jax.random.uniform(key, shape, dtype))


def _from_centroids(
    centroids: AnyArray, alpha: float
) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
    return (
        lambda key, shape: 2 * alpha * centroids.T,
        lambda key, shape: -alpha * jnp.linalg.norm(centroids, axis=1),
    )


def with_centroids(
    params: dict[str, Float[Array, "..."]],
    centres: Float[AnyArray, "v d"],
    normalized: bool = False,
    alpha: float = 100.0,
) -> dict[str, Float[Array, "..."]]:
    """Parameters with the centroids `centres` (k-means centres, not normalised).

    The assignment of NetRVLAD keeps its initial parameters, as in the published code. The
    assignment of NetVLAD is set from the centres: kernel 2 alpha c, bias -alpha |c| (as published,
    although |c|^2 would give the softmax of squared distances; both agree for unit centroids).

    Args:
      params: parameters of a `NetRVLAD`.
      centres: [v, d].
      normalized, alpha: as in the module.

    Raises:
      ValueError: the shape of the centres differs from that of the module's centroids.
    """
    if centres.shape != params["centroids"].shape:
        raise ValueError(
            f"centres of shape {centres.shape} do not fit centroids {params['centroids'].shape}"
        )
    centres = jnp.asarray(centres, params["centroids"].dtype)
    params = {**params, "centroids": centres}
    if normalized:
        kernel_init, bias_init = _from_centroids(centres, alpha)
        params |= {"kernel": kernel_init(None, None), "bias": bias_init(None, None)}
    return params


def l2_normalize(
    x: Float[AnyArray, "*shape"], axis: int | tuple[int, ...] = -1
) -> Float[Array, "*shape"]:
    """x / max(|x|, 1e-12); a zero vector stays zero, with zero gradient."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * _inverse_norm(square)


def _inverse_norm(square: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))


def vlad(
    assignment: Float[AnyArray, "b *l v"],
    x: Float[AnyArray, "b *l d"],
    centroids: Float[AnyArray, "v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b v d"]:
    """The VLAD vectors [b, v, d], not L2-normalised as a whole.

    Args:
      assignment: [b, v] or [b, l, v]; `x`: [b, d] or [b, l, d]; `centroids`: [v, d].
      intra_normalize: L2-normalise each cluster's residual (NetVLAD).
    """
    if x.ndim == 2:
        assignment, x = assignment[:, None], x[:, None]
    residual = jnp.einsum("blv,bld->bvd", assignment, x, precision=HIGHEST)
    residual -= jnp.sum(assignment, axis=1)[:, :, None] * centroids
    return l2_normalize(residual) if intra_normalize else residual


def cosine_gram(
    assignment: Float[AnyArray, "b *l v"],
    x: Float[AnyArray, "b *l d"],
    centroids: Float[AnyArray, "v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b b"]:
    """Cosine similarities [b, b] of the VLAD vectors of a batch.

    With one descriptor per patch the cost is O(b^2 (d + v) + b v d), without a [b, v, d] array.

    Args:
      assignment, x, centroids, intra_normalize: as for `vlad`.
    """
    if x.ndim == 3:
        y = vlad(assignment, x, centroids, intra_normalize)
        y = l2_normalize(y.reshape(y.shape[0], -1))
        return jnp.matmul(y, y.T, precision=HIGHEST)
    weights, x, centroids, products = _centred(assignment, x, centroids, intra_normalize)
    cross = jnp.matmul(weights * products, weights.T, precision=HIGHEST)
    both = jnp.matmul(weights, weights.T, precision=HIGHEST)
    squares = jnp.sum(centroids * centroids, axis=1)
    gram = both * jnp.matmul(x, x.T, precision=HIGHEST) - cross - cross.T
    gram += jnp.matmul(weights * squares, weights.T, precision=HIGHEST)
    inverse = _inverse_norm(_square_norms(weights, x, centroids, products))
    return gram * inverse[:, None] * inverse[None, :]


def page_sum(
    assignment: Float[AnyArray, "b *l v"],
    x: Float[AnyArray, "b *l d"],
    centroids: Float[AnyArray, "v d"],
    segments: Float[AnyArray, "s b"],
    intra_normalize: bool = False,
) -> Float[Array, "s v d"]:
    """Sums of the L2-normalised VLAD vectors of the patches of each page, [s, v, d].

    With one descriptor per patch this is one matrix product per page, without the vectors of the
    patches.

    Args:
      assignment, x, centroids, intra_normalize: as for `vlad`.
      segments: float [s, b], weight of patch b in page s: one-hot columns, zero for padding.
    """
    if x.ndim == 3:
        y = vlad(assignment, x, centroids, intra_normalize)
        return jnp.einsum("sb,bvd->svd", segments, l2_normalize(y, (1, 2)), precision=HIGHEST)
    weights, centred, centred_centroids, inverse = _unit_weights(
        assignment, x, centroids, intra_normalize
    )
    weights = segments[:, :, None] * (weights * inverse[:, None])
    sums = jnp.einsum("sbv,bd->svd", weights, centred, precision=HIGHEST)
    return sums - jnp.sum(weights, axis=1)[:, :, None] * centred_centroids


def inner_products(
    assignment: Float[AnyArray, "b *l v"],
    x: Float[AnyArray, "b *l d"],
    centroids: Float[AnyArray, "v d"],
    directions: Float[AnyArray, "k v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b k"]:
    """Inner products [b, k] of the L2-normalised VLAD vectors with k vectors.

    With one descriptor per patch the cost is O(k b v d), without the vectors of the patches.

    Args:
      assignment, x, centroids, intra_normalize: as for `vlad`.
      directions: [k, v, d].
    """
    if x.ndim == 3:
        y = vlad(assignment, x, centroids, intra_normalize)
        y = l2_normalize(y, (1, 2))
        return jnp.einsum("bvd,kvd->bk", y, directions, precision=HIGHEST)
    weights, x, centroids, inverse = _unit_weights(assignment, x, centroids, intra_normalize)
    products = jnp.einsum("bd,kvd->bkv", x, directions, precision=HIGHEST)
    products -= jnp.einsum("vd,kvd->kv", centroids, directions, precision=HIGHEST)
    return jnp.einsum("bv,bkv->bk", weights * inverse[:, None], products, precision=HIGHEST)


def _unit_weights(
    assignment: AnyArray, x: AnyArray, centroids: AnyArray, intra_normalize: bool
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """As `_centred`, with the inverse norms [b] of the VLAD vectors in place of the products."""
    weights, x, centroids, products = _centred(assignment, x, centroids, intra_normalize)
    inverse = _inverse_norm(_square_norms(weights, x, centroids, products))
    return weights, x, centroids, inverse


def bag_gram(
    assignment: Float[AnyArray, "b *l v"],
    x: Float[AnyArray, "b *l d"],
    centroids: Float[AnyArray, "v d"],
    patches_per_bag: int,
    intra_normalize: bool = False,
) -> Float[Array, "g g"]:
    """Cosine similarities [g, g] of the g = b / patches_per_bag bags of successive patches.

    The vector of a bag is the sum of the L2-normalised VLAD vectors of its patches, as `page_sum`
    computes the descriptor of a page. With one patch per bag the result is `cosine_gram`.

    Args:
      assignment, x, centroids, intra_normalize: as for `vlad`.
      patches_per_bag: a divisor of b.
    """
    if patches_per_bag == 1:
        return cosine_gram(assignment, x, centroids, intra_normalize)
    whole = jnp.ones((1, patches_per_bag), x.dtype)

    def bag_sum(assignment: AnyArray, x: AnyArray) -> jax.Array:
        return page_sum(assignment, x, centroids, whole, intra_normalize).reshape(-1)

    bags = (y.reshape(-1, patches_per_bag, *y.shape[1:]) for y in (assignment, x))
    y = l2_normalize(jax.vmap(bag_sum)(*bags))
    return jnp.matmul(y, y.T, precision=HIGHEST)


def _centred(
    assignment: AnyArray, x: AnyArray, centroids: AnyArray, intra_normalize: bool
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """Weights [b, v] of the residuals, x and centroids minus the mean centroid, x C^T [b, v].

    The shift cancels in every residual and keeps the products small.
    """
    mean = jnp.mean(centroids, axis=0)
    x, centroids = x - mean, centroids - mean
    products = jnp.matmul(x, centroids.T, precision=HIGHEST)
    if intra_normalize:
        # With one descriptor, normalising a_v (x - c_v) gives (x - c_v) / |x - c_v|.
        square = _square_distances(x, centroids, products)
        assignment = assignment * _inverse_norm(assignment * assignment * square)
    return assignment, x, centroids, products


def _square_distances(x: AnyArray, centroids: AnyArray, products: AnyArray) -> jax.Array:
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(centroids * centroids, axis=1)
    return squares - 2 * products


def _square_norms(
    weights: AnyArray, x: AnyArray, centroids: AnyArray, products: AnyArray
) -> jax.Array:
    distances = _square_distances(x, centroids, products)
    return jnp.sum(weights * weights * distances, axis=1)


def generalized_max_pool(
    x: Float[AnyArray, "b l d"], ridge: Float[Array, "..."]
) -> Float[Array, "b d"]:
    """Generalised max pooling: the vector with equal similarity to every descriptor.

    X^T (X X^T + ridge I)^-1 1, not normalised.

    Args:
      x: [b, l, d].
      ridge: scalar, positive.

    Returns:
      [b, d].
    """
    length = x.shape[1]
    kernel = jnp.einsum("bld,bmd->blm", x, x, precision=HIGHEST)
    kernel += ridge * jnp.eye(length, dtype=x.dtype)
    factor = jax.scipy.linalg.cho_factor(kernel)
    ones = jnp.ones((*x.shape[:2], 1), x.dtype)
    alpha = jax.scipy.linalg.cho_solve(factor, ones)[..., 0]
    return jnp.einsum("bl,bld->bd", alpha, x, precision=HIGHEST)
