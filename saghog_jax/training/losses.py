"""Metric losses on a matrix of similarities; masks select the pairs, so shapes are static.

Axis letters: b patches. A row of the matrix is an anchor, a column its positive or negative.

The multi-similarity and the semi-hard triplet loss follow pytorch-metric-learning 2.0 as the
published code uses it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

# A number or a scalar array.
Number = float | Real[Array, ""]


def pair_masks(
    labels: Int[Array, " b"],
) -> tuple[Bool[Array, "b b"], Bool[Array, "b b"]]:
    """Boolean masks [b, b] of positive pairs (same label, not itself) and of negative pairs."""
    same = labels[:, None] == labels[None, :]
    return same & ~jnp.eye(labels.shape[0], dtype=bool), ~same


def hard_pairs(
    gram: Float[Array, "b b"], labels: Int[Array, " b"], epsilon: Number
) -> tuple[Bool[Array, "b b"], Bool[Array, "b b"]]:
    """The multi-similarity miner: the hard pairs of each anchor.

    A positive is kept if its similarity minus `epsilon` is below that of the nearest negative, a
    negative if its similarity plus `epsilon` is above that of the farthest positive. An anchor
    without positives or without negatives has no hard pairs.

    Args:
      gram: [b, b] similarities.
      labels: int [b].
      epsilon: margin.

    Returns:
      boolean masks [b, b] of kept positive and kept negative pairs.
    """
    positive, negative = pair_masks(labels)
    infinity = jnp.array(jnp.inf, gram.dtype)
    nearest_negative = jnp.max(jnp.where(negative, gram, -infinity), axis=1, keepdims=True)
    farthest_positive = jnp.min(jnp.where(positive, gram, infinity), axis=1, keepdims=True)
    return (
        positive & (gram - epsilon < nearest_negative),
        negative & (gram + epsilon > farthest_positive),
    )


def multi_similarity(
    gram: Float[Array, "b b"],
    labels: Int[Array, " b"],
    alpha: Number = 2.0,
    beta: Number = 40.0,
    base: Number = 0.5,
    epsilon: Number | None = 0.1,
) -> Float[Array, ""]:
    """Multi-similarity loss, the mean over all anchors; an anchor without a kept pair counts as 0.

    As in pytorch-metric-learning, the loss of a batch with at most one kept positive pair and at
    most one kept negative pair is 0.

    Args:
      gram: [b, b] cosine similarities.
      labels: int [b].
      alpha, beta: sharpness for positive and negative pairs.
      base: similarity that separates positive and negative pairs.
      epsilon: margin of the miner; None keeps all pairs.

    Returns:
      scalar.
    """
    if epsilon is None:
        positive, negative = pair_masks(labels)
    else:
        positive, negative = hard_pairs(jax.lax.stop_gradient(gram), labels, epsilon)
    loss = _log_one_plus_sum(-alpha * (gram - base), positive) / alpha
    loss += _log_one_plus_sum(beta * (gram - base), negative) / beta
    enough = (jnp.sum(positive) > 1) | (jnp.sum(negative) > 1)
    return jnp.where(enough, jnp.mean(loss), 0 * jnp.mean(loss))


def _log_one_plus_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """log(1 + sum of exp(values) over the mask) per row, without overflow; 0 for an empty row."""
    values = jnp.where(mask, values, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(values, axis=1), 0))
    total = jnp.sum(jnp.exp(values - top[:, None]), axis=1)
    # Both forms are equal; log1p is exact for small sums, which need no scaling.
    return jnp.where(top > 0, top + jnp.log(jnp.exp(-top) + total), jnp.log1p(total))


def contrastive(
    gram: Float[Array, "b b"], labels: Int[Array, " b"], temperature: Number = 0.1
) -> Float[Array, ""]:
    """Supervised contrastive loss (Khosla et al. 2020, sum outside of the logarithm).

    For each anchor: the cross-entropy between a uniform distribution over its positives and the
    softmax of its similarities to all other patches. The loss is the mean over anchors with a
    positive; 0 if there is none.

    Args:
      gram: [b, b] cosine similarities.
      labels: int [b].
      temperature: divisor of the similarities.

    Returns:
      scalar.
    """
    positive, _ = pair_masks(labels)
    logits = gram / temperature
    others = jnp.where(jnp.eye(len(labels), dtype=bool), -jnp.inf, logits)
    count = jnp.sum(positive, axis=1).astype(gram.dtype)
    mean_positive = jnp.sum(jnp.where(positive, logits, 0), axis=1) / jnp.maximum(count, 1)
    loss = jnp.where(count > 0, jax.nn.logsumexp(others, axis=1) - mean_positive, 0)
    return jnp.sum(loss) / jnp.maximum(jnp.sum(count > 0), 1).astype(gram.dtype)


def triplet_semihard(
    gram: Float[Array, "b b"], labels: Int[Array, " b"], margin: Number = 0.1
) -> Float[Array, ""]:
    """Triplet margin loss, the mean over all semi-hard triplets.

    Distances are Euclidean distances of unit vectors, sqrt(2 - 2 s). A triplet is semi-hard if its
    negative is farther than its positive by less than `margin`. Without semi-hard triplets the loss
    is 0.

    Args:
      gram: [b, b] cosine similarities.
      labels: int [b].
      margin: margin of the distances.

    Returns:
      scalar.
    """
    positive, negative = pair_masks(labels)
    square = 2 - 2 * gram
    # The square root has no gradient at 0, the distance of duplicates.
    safe = jnp.where(square > 0, square, 1)
    distances = jnp.where(square > 0, jnp.sqrt(safe), 0)
    # The loss is the sum over triplets of d(positive) + margin - d(negative). Counting the triplets
    # of each pair gives this sum without a [b, b, b] array.
    fixed = jax.lax.stop_gradient(distances)
    near = jnp.sort(jnp.where(positive, fixed, jnp.inf), axis=1)
    far = jnp.sort(jnp.where(negative, fixed, jnp.inf), axis=1)
    as_positive = _count_below(far, fixed + margin) - _count_up_to(far, fixed)
    as_negative = _count_below(near, fixed) - _count_up_to(near + margin, fixed)
    as_positive = jnp.where(positive, as_positive, 0)
    as_negative = jnp.where(negative, as_negative, 0)
    count = jnp.maximum(jnp.sum(as_positive), 1).astype(gram.dtype)
    losses = as_positive.astype(gram.dtype) * (distances + margin)
    losses -= as_negative.astype(gram.dtype) * distances
    return jnp.sum(losses) / count


# For each row: how many values of the sorted first array are below (or not above) each value of the
# second.
_count_below = jax.vmap(functools.partial(jnp.searchsorted, side="left"))
_count_up_to = jax.vmap(functools.partial(jnp.searchsorted, side="right"))


def triplet(
    gram: Float[Array, "b b"],
    labels: Int[Array, " b"],
    margin: Number = 0.1,
    include_self: bool = False,
) -> Float[Array, ""]:
    """The published code's own triplet loss, on similarities.

    A positive counts as 1 - s if its similarity is below that of the nearest negative plus
    `margin`. A negative counts as s if its similarity is above max(0.6, nearest positive) minus
    `margin`. The loss is the sum per anchor, averaged over anchors. An anchor without negatives
    keeps no positive; an anchor without positives uses 0.6.

    Args:
      gram: [b, b] inner products.
      labels: int [b].
      margin: margin of the similarities.
      include_self: count each anchor as its own positive, an error of the published code: the
        threshold for negatives is then always near 1 - margin.

    Returns:
      scalar.
    """
    positive, negative = pair_masks(labels)
    if include_self:
        positive = ~negative
    nearest_negative = jnp.max(jnp.where(negative, gram, -jnp.inf), axis=1, keepdims=True)
    nearest_positive = jnp.max(jnp.where(positive, gram, -jnp.inf), axis=1, keepdims=True)
    kept_positive = positive & (gram < nearest_negative + margin)
    kept_negative = negative & (gram > jnp.maximum(0.6, nearest_positive) - margin)
    losses = jnp.where(kept_positive, 1 - gram, 0) + jnp.where(kept_negative, gram, 0)
    return jnp.mean(jnp.sum(losses, axis=1))
