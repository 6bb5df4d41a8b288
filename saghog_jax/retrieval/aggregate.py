"""From the descriptors of a page's patches to one page descriptor: pooling, power norm, L2.

Axis letters: b patches, d descriptor width, p pages.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array

POOLINGS = ("sum", "mean", "max", "lse", "gmp")


def l2_normalize(x: Array, eps: float = 1e-12) -> Array:
    """Scales each vector of the last axis to length 1; a zero vector stays zero.

    Works on numpy and on jax arrays (also traced) and returns the kind and dtype it was given.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    norm = xp.linalg.norm(x, axis=-1, keepdims=True)
    return x / xp.maximum(norm, xp.asarray(eps, norm.dtype))


def power_norm(x: Array, alpha: float) -> Array:
    """sign(x) |x|^alpha, element by element; alpha 0.4 in the paper, 1 leaves `x` as it is.

    Works on numpy and on jax arrays (also traced) and returns the kind and dtype it was given.

    Raises:
      ValueError: alpha outside of (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"power normalisation with alpha {alpha}; it must lie in (0, 1]")
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.sign(x) * xp.abs(x) ** xp.asarray(alpha, x.dtype)


def pool(descriptors: np.ndarray, mode: str, gmp_lambda: float = 1.0) -> np.ndarray:
    """Pools the patch descriptors [b, d] of one page into [d], float32; a page of none gives zeros.

    `sum` is the paper's. `mean` differs from it by a factor that the L2 normalisation removes.
    `max` is the largest value a dimension, `lse` log(sum(exp)), `gmp` generalised max pooling: the
    vector whose inner product with every patch descriptor is as near 1 as `gmp_lambda` allows.

    Raises:
      ValueError: an unknown mode, a `gmp_lambda` that is not positive.
    """
    if mode not in POOLINGS:
        raise ValueError(f"unknown pooling {mode!r}, known: {', '.join(POOLINGS)}")
    if gmp_lambda <= 0:
        raise ValueError(f"gmp_lambda {gmp_lambda} must be positive")
    x = np.asarray(descriptors, np.float64)
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    if mode == "sum":
        pooled = x.sum(0)
    elif mode == "mean":
        pooled = x.mean(0)
    elif mode == "max":
        pooled = x.max(0)
    elif mode == "lse":
        top = x.max(0)
        pooled = top + np.log(np.exp(x - top).sum(0))
    else:
        pooled = _generalised_max(x, gmp_lambda)
    return pooled.astype(np.float32)


def _generalised_max(x: np.ndarray, ridge: float) -> np.ndarray:
    # (X^T X + r I)^-1 X^T 1 and X^T (X X^T + r I)^-1 1 are the same vector: the smaller system.
    b, d = x.shape
    if b <= d:
        return x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(b), np.ones(b))
    return np.linalg.solve(x.T @ x + ridge * np.eye(d), x.sum(0))


def page_descriptors(
    descriptors: np.ndarray, lengths: Sequence[int], mode: str = "sum", alpha: float = 0.4
) -> np.ndarray:
    """Pools, power-normalises and L2-normalises (the paper; reference: section 7).

    Args:
      descriptors: [b, d] patch descriptors, page after page.
      lengths: p numbers of patches; they add up to b.

    Returns:
      float32 [p, d], unit rows; the row of a page without patches (or with a zero sum) is zero.

    Raises:
      ValueError: lengths that do not add up to b, and what `pool` and `power_norm` raise.
    """
    ends = np.cumsum(lengths)
    if (ends[-1] if len(ends) else 0) != len(descriptors):
        raise ValueError(f"lengths add up to {sum(lengths)}, but {len(descriptors)} descriptors")
    pages = np.split(descriptors, ends[:-1])
    return l2_normalize(power_norm(np.stack([pool(page, mode) for page in pages]), alpha))
