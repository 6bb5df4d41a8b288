"""Products and sums of VLAD vectors of patches with one descriptor, without these vectors.

With A the assignments, X the descriptors and C the centroids, sums over patches and inner products
follow from matrix products of A, X and C. These forms lose digits where a vector is short beside
its terms: the share of sum_v A_v^2 |X - C_v|^2 in sum_v A_v^2 (|X|^2 + |C_v|^2) is small where a
descriptor is next to its centroid. They serve where this share is at least `LEAST_SHARE` for every
patch; elsewhere `residuals` computes the same.

Axis letters: b patches, d width, v clusters, s segments, g bags, k directions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.residuals import HIGHEST, inverse_norm

LEAST_SHARE = 0.01


class ShortForm(NamedTuple):
    """What the short forms are made of.

    weights: [b, v], of the residuals: the assignment, or for NetVLAD 1 / |x - c_v|.
    x, centroids: [b, d] and [v, d], minus the mean centroid. This shift cancels in every residual
      and keeps the products small.
    products: x C^T [b, v].
    inverse: [b], inverse norms of the VLAD vectors; meaningless for a patch next to a centroid.
    near: bool, whether any patch is next to a centroid, so that the short forms must not serve.
    """

    weights: jax.Array
    x: jax.Array
    centroids: jax.Array
    products: jax.Array
    inverse: jax.Array
    near: jax.Array

    @property
    def unit_weights(self) -> jax.Array:
        """Weights [b, v] of the residuals in the unit VLAD vectors."""
        return self.weights * self.inverse[:, None]

    def cosine_gram(self) -> Float[Array, "b b"]:
        """As `netrvlad.cosine_gram`."""
        weights = self.weights
        cross = jnp.matmul(weights * self.products, weights.T, precision=HIGHEST)
        both = jnp.matmul(weights, weights.T, precision=HIGHEST)
        squares = jnp.sum(self.centroids * self.centroids, axis=1)
        gram = both * jnp.matmul(self.x, self.x.T, precision=HIGHEST) - cross - cross.T
        gram += jnp.matmul(weights * squares, weights.T, precision=HIGHEST)
        return gram * self.inverse[:, None] * self.inverse[None, :]

    def page_sum(self, segments: Float[AnyArray, "s b"]) -> Float[Array, "s v d"]:
        """As `netrvlad.page_sum`."""
        weights = segments[:, :, None] * self.unit_weights
        sums = jnp.einsum("sbv,bd->svd", weights, self.x, precision=HIGHEST)
        return sums - jnp.sum(weights, axis=1)[:, :, None] * self.centroids

    def bag_sum(self, patches_per_bag: int) -> Float[Array, "g v d"]:
        """Sums of the unit VLAD vectors of bags of successive patches, see `netrvlad.bag_gram`."""
        weights, x = (
            y.reshape(-1, patches_per_bag, y.shape[1]) for y in (self.unit_weights, self.x)
        )
        sums = jnp.einsum("gpv,gpd->gvd", weights, x, precision=HIGHEST)
        return sums - jnp.sum(weights, axis=1)[:, :, None] * self.centroids

    def inner_products(self, directions: Float[AnyArray, "k v d"]) -> Float[Array, "b k"]:
        """As `netrvlad.inner_products`."""
        products = jnp.einsum("bd,kvd->bkv", self.x, directions, precision=HIGHEST)
        products -= jnp.einsum("vd,kvd->kv", self.centroids, directions, precision=HIGHEST)
        return jnp.einsum("bv,bkv->bk", self.unit_weights, products, precision=HIGHEST)


def short_form(
    assignment: Float[AnyArray, "b v"],
    x: Float[AnyArray, "b d"],
    centroids: Float[AnyArray, "v d"],
    intra_normalize: bool,
) -> ShortForm:
    """The short form of a batch; arguments as for `netrvlad.vlad`."""
    mean = jnp.mean(centroids, axis=0)
    x, centroids = x - mean, centroids - mean
    products = jnp.matmul(x, centroids.T, precision=HIGHEST)
    terms = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(centroids * centroids, axis=1)
    distances = terms - 2 * products
    near = jnp.zeros((), bool)
    weights = assignment
    # Patches next to a centroid get harmless values: the gradient of a form that does not serve is
    # zero times its derivatives, which must be finite.
    if intra_normalize:
        # With one descriptor, normalising a_v (x - c_v) gives (x - c_v) / |x - c_v|.
        close = distances < LEAST_SHARE * terms
        near = jnp.any(close & (assignment > 0))
        distances = jnp.where(close, terms, distances)
        weights = assignment * inverse_norm(assignment * assignment * distances)
    squares = jnp.sum(weights * weights * distances, axis=1)
    whole = jnp.sum(weights * weights * terms, axis=1)
    close = squares < LEAST_SHARE * whole
    inverse = inverse_norm(jnp.where(close, whole, squares))
    return ShortForm(weights, x, centroids, products, inverse, near | jnp.any(close))
