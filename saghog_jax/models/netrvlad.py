"""NetRVLAD and NetVLAD: soft assignment to clusters, and sums and cosines of the vectors.

Axis letters: b patches, l descriptors of a patch, d width, v clusters, s segments (pages).

The VLAD vector of a patch is the matrix sum_l A_lv (X_l - C_v), [v, d], 51,200 numbers at paper
size. With one descriptor per patch, inner products and sums over patches follow from A, X and C
(`cosine_gram`, `page_sum`) without this vector; with several the vectors are computed.

A batch with a patch next to a centroid takes explicit residuals (`residuals`), any other batch the
short forms (`short_forms`). In float32, at any distance from the centroids, the error of a unit
vector, of a mean of unit vectors and of a cosine is below 1e-4, and the error of a gradient below
1e-3 of the largest gradient.

Functions take assignments [b, v] with descriptors [b, d], or [b, l, v] with [b, l, d]. The
assignment of a descriptor that does not count is zero.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from saghog_jax.models import residuals
from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.layers import product
from saghog_jax.models.residuals import HIGHEST, l2_normalize
from saghog_jax.models.short_forms import short_form
from saghog_jax.models.vit import symmetric_uniform


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
        residual = assignment[:, :, None] * (x[:, None] - centroids)
    else:
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
    short = short_form(assignment, x, centroids, intra_normalize)
    return _unless_near(
        short.near,
        short.cosine_gram(),
        lambda: residuals.cosine_gram(assignment, x, centroids, intra_normalize),
    )


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
    short = short_form(assignment, x, centroids, intra_normalize)
    return _unless_near(
        short.near,
        short.page_sum(segments),
        lambda: residuals.page_sum(assignment, x, centroids, segments, intra_normalize),
    )


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
    short = short_form(assignment, x, centroids, intra_normalize)
    return _unless_near(
        short.near,
        short.inner_products(directions),
        lambda: residuals.inner_products(assignment, x, centroids, directions, intra_normalize),
    )


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
    if x.ndim == 3:
        y = vlad(assignment, x, centroids, intra_normalize)
        y = l2_normalize(y.reshape(y.shape[0], -1))
        sums = y.reshape(-1, patches_per_bag, y.shape[1]).sum(1)
    else:
        short = short_form(assignment, x, centroids, intra_normalize)
        sums = _unless_near(
            short.near,
            short.bag_sum(patches_per_bag),
            lambda: residuals.bag_sum(assignment, x, centroids, patches_per_bag, intra_normalize),
        )
    y = l2_normalize(sums.reshape(sums.shape[0], -1))
    return jnp.matmul(y, y.T, precision=HIGHEST)


def _unless_near(near: jax.Array, short: jax.Array, explicit: Callable[[], jax.Array]) -> jax.Array:
    """The value of the short form, or the explicit value, which is computed only if it is needed.

    The short value is cheap and is computed outside of the branch: inside, XLA merges less.
    """
    return jax.lax.cond(near, explicit, lambda: short)


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
