"""From the descriptors of a page's patches to one page descriptor: pooling, power norm, L2.

Axis letters: b patches, d descriptor width, p pages.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from saghog_jax.input_pipeline.errors import check_choice

Array = np.ndarray | jax.Array

POOLINGS = ("sum", "mean", "max", "lse", "gmp")
# Parts of a page are joined by these.
_JOIN = {"sum": np.add, "mean": np.add, "max": np.maximum, "lse": np.logaddexp}
# Generalised max pooling of a stream keeps a matrix of the width squared: 128 MiB.
GMP_MAX_WIDTH = 4096


def l2_normalize(x: Array, eps: float = 1e-12) -> Array:
    """Scales each vector of the last axis to length 1; a zero vector stays zero.

    Works on numpy and on jax arrays (also traced) and returns the kind and dtype it was given.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    norm = xp.linalg.norm(x, axis=-1, keepdims=True)
    return x / xp.maximum(norm, xp.asarray(eps, norm.dtype))


def side_by_side(parts: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """Unit descriptors of the same pages, [p, d] each, in one: unit rows [p, sum of d].

    The similarity of two pages is the mean of those by each part, weighted by `shares`. A part of
    zeros (no patch) stays zeros, and the others make the page's length.
    """
    if len(parts) == 1:
        return parts[0]
    weighted = [np.float32(share**0.5) * x for x, share in zip(parts, shares, strict=True)]
    return l2_normalize(np.concatenate(weighted, axis=1))


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
    x = np.asarray(descriptors, np.float64)
    pages = PagePool(mode, x.shape[1], gmp_lambda)
    if len(x):
        if mode in ("sum", "mean"):
            part = x.sum(0)
        elif mode == "max":
            part = x.max(0)
        else:
            part = x if mode == "gmp" else np.logaddexp.reduce(x, 0)
        pages.add(part, len(x))
    return pages.result()


class PagePool:
    """Pools the patch descriptors of one page as they stream by, in parts of any size.

    Args:
      mode, gmp_lambda: as in `pool`.
      width: of the descriptors; for `gmp` at most GMP_MAX_WIDTH.

    Raises:
      ValueError: what `pool` raises, a width that is too large.
    """

    def __init__(self, mode: str, width: int, gmp_lambda: float = 1.0) -> None:
        check_choice("pooling", mode, POOLINGS)
        if gmp_lambda <= 0:
            raise ValueError(f"gmp_lambda {gmp_lambda} must be positive")
        if mode == "gmp" and width > GMP_MAX_WIDTH:
            raise ValueError(
                f"gmp pools descriptors of width {GMP_MAX_WIDTH} at most, not {width}; whiten them "
                "to fewer dimensions before"
            )
        self._mode, self._width, self._ridge = mode, width, gmp_lambda
        self._count = 0
        self._joined = np.zeros(0)
        self._gram = np.zeros(0)

    def add(self, part: np.ndarray, count: int) -> None:
        """Takes in `count` more patches.

        Args:
          part: their sum (sum, mean), maximum or log-sum-exp a dimension, [d]; for `gmp` the
            descriptors themselves, [count, d].
        """
        if count < 1:
            return
        part = np.asarray(part, np.float64)
        if self._mode == "gmp":
            gram, part = part.T @ part, part.sum(0)
            self._gram = gram if not self._count else self._gram + gram
        join = _JOIN.get(self._mode, np.add)
        self._joined = part if not self._count else join(self._joined, part)
        self._count += count

    def result(self) -> np.ndarray:
        """The pooled descriptor, float32 [d]; zeros without any patch."""
        if not self._count:
            return np.zeros(self._width, np.float32)
        pooled = self._joined
        if self._mode == "mean":
            pooled = pooled / self._count
        elif self._mode == "gmp":
            # (X^T X + r I)^-1 X^T 1: as small for a page of any number of patches.
            pooled = np.linalg.solve(self._gram + self._ridge * np.eye(self._width), pooled)
        return pooled.astype(np.float32)


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
