"""NetRVLAD and NetVLAD: soft assignment to clusters, and what follows from it without [b, v*d].

Axis letters: b patches, l descriptors of a patch, d width, v clusters, s segments (pages).

The vector of a patch is the matrix of all sum_l A_lv (X_l - C_v), [v, d], 51,200 numbers at paper
size. With one descriptor a patch, inner products and sums over patches follow from A, X and C
alone (`cosine_gram`, `page_sum`), exactly; with several the vectors are formed.

Functions take assignments [b, v] with descriptors [b, d], or [b, l, v] with [b, l, d]. Assignments
of descriptors that do not count are zero.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from saghog_jax.models.layers import product
from saghog_jax.models.vit import symmetric_uniform

EPSILON = 1e-12  # Norms below it count as it, so that the zero vector stays zero.
HIGHEST = jax.lax.Precision.HIGHEST  # Differences of large numbers: no TF32 or bfloat16.


class NetRVLAD(nn.Module):
    """The parameters of NetRVLAD or NetVLAD and the assignment.

    Attributes:
      num_clusters: v.
      normalized: False is NetRVLAD: assignment from the descriptor as it is, no
        intra-normalisation. True is NetVLAD: assignment from the L2-normalised descriptor,
        residuals of the raw one, each cluster's residual L2-normalised.
      alpha: sharpness of the initial NetVLAD assignment.
      dtype: of the operands of the assignment's product.
    """

    num_clusters: int = 100
    normalized: bool = False
    alpha: float = 100.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *l d"], weights: Float[Array, " b *l"] | None = None
    ) -> Float[Array, "b *l v"]:
        """Assigns descriptors to clusters; the centroids are the parameter `centroids` [v, d].

        Args:
          x: float32 [b, d] or [b, l, d].
          weights: [b] or [b, l], multiplied to the assignment; None is all ones.

        Returns:
          the assignment [b, v] or [b, l, v].
        """
        d = x.shape[-1]
        centroids = self.param("centroids", _unit_rows, (self.num_clusters, d))
        if self.normalized:
            kernel_init, bias_init = _from_centroids(centroids, self.alpha)
            y = l2_normalize(x)
        else:
            # PyTorch's default of a convolution, which the published NetRVLAD keeps.
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
    centroids: jax.Array, alpha: float
) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
    return (
        lambda key, shape: 2 * alpha * centroids.T,
        lambda key, shape: -alpha * jnp.linalg.norm(centroids, axis=1),
    )


def with_centroids(
    params: dict[str, Float[Array, "..."]],
    centres: Float[Array | np.ndarray, "v d"],
    normalized: bool = False,
    alpha: float = 100.0,
) -> dict[str, Float[Array, "..."]]:
    """Parameters whose centroids are `centres` (of k-means, not normalised).

    NetRVLAD's assignment stays as initialised, as in the published code; NetVLAD's follows the
    centres: kernel 2 alpha c, bias -alpha |c| (published so, although |c|^2 would make it the
    softmax of squared distances; the same for unit centroids).

    Args:
      params: of a `NetRVLAD`.
      centres: [v, d].
      normalized, alpha: as the module's.

    Raises:
      ValueError: another number or width of centres than the module's.
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
    x: Float[Array, "*shape"], axis: int | tuple[int, ...] = -1
) -> Float[Array, "*shape"]:
    """x / max(|x|, 1e-12); zero stays zero, with zero gradient."""
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * _inverse_norm(square)


def _inverse_norm(square: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))


def vlad(
    assignment: Float[Array, "b *l v"],
    x: Float[Array, "b *l d"],
    centroids: Float[Array, "v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b v d"]:
    """The plain form: vectors [b, v, d], not L2-normalised as a whole.

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
    assignment: Float[Array, "b *l v"],
    x: Float[Array, "b *l d"],
    centroids: Float[Array, "v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b b"]:
    """Cosine similarities [b, b] of the vectors of a batch.

    With one descriptor a patch the cost is O(b^2 (d + v) + b v d) and no [b, v, d] array exists.

    Args: as `vlad`.
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
    assignment: Float[Array, "b *l v"],
    x: Float[Array, "b *l d"],
    centroids: Float[Array, "v d"],
    segments: Float[Array, "s b"],
    intra_normalize: bool = False,
) -> Float[Array, "s v d"]:
    """Sums of L2-normalised vectors over the patches of each page, [s, v, d].

    With one descriptor a patch it is one matrix product a page: no vector of a patch is formed.

    Args:
      assignment, x, centroids, intra_normalize: as `vlad`.
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
    assignment: Float[Array, "b *l v"],
    x: Float[Array, "b *l d"],
    centroids: Float[Array, "v d"],
    directions: Float[Array, "k v d"],
    intra_normalize: bool = False,
) -> Float[Array, "b k"]:
    """Inner products [b, k] of the L2-normalised vectors with k given ones.

    With one descriptor a patch the cost is O(k b v d) and no vector of a patch is formed.

    Args:
      assignment, x, centroids, intra_normalize: as `vlad`.
      directions: [k, v, d].
    """
    if x.ndim == 3:
        y = vlad(assignment, x, centroids, intra_normalize)
        y = l2_normalize(y, (1, 2))
        return jnp.einsum("bvd,kvd->bk", y, directions, precision=HIGHEST)
    weights, x, centroids, inverse = _unit_weights(assignment, x, centroids, intra_normalize)
    towards = jnp.einsum("bd,kvd->bkv", x, directions, precision=HIGHEST)
    towards -= jnp.einsum("vd,kvd->kv", centroids, directions, precision=HIGHEST)
    return jnp.einsum("bv,bkv->bk", weights * inverse[:, None], towards, precision=HIGHEST)


def _unit_weights(
    assignment: jax.Array, x: jax.Array, centroids: jax.Array, intra_normalize: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `_centred`, with the inverse norms [b] of the vectors in place of the products."""
    weights, x, centroids, products = _centred(assignment, x, centroids, intra_normalize)
    inverse = _inverse_norm(_square_norms(weights, x, centroids, products))
    return weights, x, centroids, inverse


def bag_gram(
    assignment: Float[Array, "b *l v"],
    x: Float[Array, "b *l d"],
    centroids: Float[Array, "v d"],
    bag: int,
    intra_normalize: bool = False,
) -> Float[Array, "g g"]:
    """Cosine similarities [b / bag, b / bag] of the sums over every `bag` patches in a row.

    A sum is of L2-normalised vectors, as `page_sum` makes the descriptor of a page; with a bag of
    one it is `cosine_gram`.

    Args: as `vlad`; `bag` divides b.
    """
    if bag == 1:
        return cosine_gram(assignment, x, centroids, intra_normalize)
    whole = jnp.ones((1, bag), x.dtype)

    def of_bag(assignment: jax.Array, x: jax.Array) -> jax.Array:
        return page_sum(assignment, x, centroids, whole, intra_normalize).reshape(-1)

    bags = (y.reshape(-1, bag, *y.shape[1:]) for y in (assignment, x))
    y = l2_normalize(jax.vmap(of_bag)(*bags))
    return jnp.matmul(y, y.T, precision=HIGHEST)


def _centred(
    assignment: jax.Array, x: jax.Array, centroids: jax.Array, intra_normalize: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weights [b, v] of the residuals, x and centroids less the mean centroid, x C^T [b, v].

    The shift cancels in every residual and keeps the products small.
    """
    mean = jnp.mean(centroids, axis=0)
    x, centroids = x - mean, centroids - mean
    products = jnp.matmul(x, centroids.T, precision=HIGHEST)
    if intra_normalize:
        # One descriptor: normalising a_v (x - c_v) leaves (x - c_v) / |x - c_v|.
        square = _square_distances(x, centroids, products)
        assignment = assignment * _inverse_norm(assignment * assignment * square)
    return assignment, x, centroids, products


def _square_distances(x: jax.Array, centroids: jax.Array, products: jax.Array) -> jax.Array:
    squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(centroids * centroids, axis=1)
    return squares - 2 * products


def _square_norms(
    weights: jax.Array, x: jax.Array, centroids: jax.Array, products: jax.Array
) -> jax.Array:
    distances = _square_distances(x, centroids, products)
    return jnp.sum(weights * weights * distances, axis=1)


def generalized_max_pool(
    x: Float[Array, "b l d"], ridge: Float[Array, "..."]
) -> Float[Array, "b d"]:
    """Generalised max pooling: the vector that is equally similar to every descriptor.

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
