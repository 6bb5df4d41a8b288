"""Page descriptors from patch descriptors: pooling, power normalisation, L2 normalisation.

Axis letters: b patches, d descriptor width, p pages.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from saghog_jax.input_pipeline.errors import check_choice

POOLINGS = ("sum", "mean", "max", "lse", "gmp")
# How the pooled values of two parts of a page are combined.
_COMBINE = {"sum": np.add, "mean": np.add, "max": np.maximum, "lse": np.logaddexp}
# Generalised max pooling stores a matrix of width x width: 128 MiB at this width.
GMP_MAX_WIDTH = 4096


@runtime_checkable
class Array(Protocol):
    """An array of numpy or jax, also a traced one. The module loads no jax."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __array_namespace__(self) -> Any:
        """The functions of the library (array API standard): numpy or jax.numpy."""


def l2_normalize(x: Float[Array, "*rows d"], eps: float = 1e-12) -> Float[Array, "*rows d"]:
    """Scales each vector of the last axis to length 1; a zero vector stays zero.

    Works on numpy and jax arrays (also traced); the result has the array type and dtype of `x`.
    """
    xp = x.__array_namespace__()
    norm = xp.linalg.norm(x, axis=-1, keepdims=True)
    return x / xp.maximum(norm, xp.asarray(eps, norm.dtype))


def concatenate(
    parts: Sequence[Float[np.ndarray, "p _"]],
    weights: Sequence[float | Float[np.ndarray, "p 1"]],
) -> Float[np.ndarray, "p d"]:
    """Concatenates unit descriptors of the same pages to weighted unit rows.

    The similarity of two pages is the mean of the similarities of the parts, weighted by `weights`.
    A page without patches in one part has zeros there; the row is then normalised over the other
    parts.

    Args:
      parts: [p, d] each.
      weights: one per part, for all pages or for each.

    Returns:
      [p, sum of d].
    """
    if len(parts) == 1:
        return parts[0]
    weighted = [np.float32(weight**0.5) * x for x, weight in zip(parts, weights, strict=True)]
    return l2_normalize(np.concatenate(weighted, axis=1))


def power_norm(x: Float[Array, "*shape"], alpha: float) -> Float[Array, "*shape"]:
    """Signed power normalisation sign(x) |x|^alpha; alpha is 0.4 in the paper, 1 disables it.

    Works on numpy and jax arrays (also traced); the result has the array type and dtype of `x`.

    Raises:
      ValueError: alpha is outside of (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"power normalisation with alpha {alpha}; it must lie in (0, 1]")
    xp = x.__array_namespace__()
    return xp.sign(x) * xp.abs(x) ** xp.asarray(alpha, x.dtype)


def pool(
    descriptors: Float[np.ndarray, "b d"], mode: str, gmp_lambda: float = 1.0
) -> Float32[np.ndarray, " d"]:
    """Pools the patch descriptors [b, d] of one page into float32 [d]; zeros without patches.

    Args:
      mode: `sum` (the paper); `mean`, which differs by a factor that L2 normalisation removes;
        `max`, the maximum per dimension; `lse`, log(sum(exp)) per dimension; or `gmp`, generalised
        max pooling: the vector whose inner product with every patch descriptor is as near to 1 as
        `gmp_lambda` allows.
      gmp_lambda: ridge of `gmp`.

    Raises:
      ValueError: the mode is unknown, or `gmp_lambda` is not positive.
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
    """Pools the patch descriptors of one page in parts of any size.

    Args:
      mode, gmp_lambda: as for `pool`.
      width: of the descriptors; for `gmp` at most GMP_MAX_WIDTH.

    Raises:
      ValueError: as `pool`, or the width is too large.
    """

    def __init__(self, mode: str, width: int, gmp_lambda: float = 1.0) -> None:
        check_choice("pooling", mode, POOLINGS)
        if gmp_lambda <= 0:
            raise ValueError(f"gmp_lambda {gmp_lambda} must be positive")
        if mode == "gmp" and width > GMP_MAX_WIDTH:
            raise ValueError(
                f"gmp pools descriptors of width {GMP_MAX_WIDTH} at most, not {width}; whiten them "
                "to fewer dimensions first"
            )
        self._mode, self._width, self._ridge = mode, width, gmp_lambda
        self._count = 0
        self._pooled = np.zeros(0)
        self._gram = np.zeros(0)

    def add(self, part: Float[np.ndarray, "*count d"], count: int) -> None:
        """Adds `count` patches.

        Args:
          part: their sum (for `sum` and `mean`), maximum or log-sum-exp per dimension, [d]; for
            `gmp` the descriptors themselves, [count, d].
        """
        if count < 1:
            return
        part = np.asarray(part, np.float64)
        if self._mode == "gmp":
            gram, part = part.T @ part, part.sum(0)
            self._gram = gram if not self._count else self._gram + gram
        combine = _COMBINE.get(self._mode, np.add)
        self._pooled = part if not self._count else combine(self._pooled, part)
        self._count += count

    def result(self) -> Float32[np.ndarray, " d"]:
        """The pooled descriptor, float32 [d]; zeros without patches."""
        if not self._count:
            return np.zeros(self._width, np.float32)
        pooled = self._pooled
        if self._mode == "mean":
            pooled = pooled / self._count
        elif self._mode == "gmp":
            # (X^T X + r I)^-1 X^T 1: its size does not depend on the number of patches.
            pooled = np.linalg.solve(self._gram + self._ridge * np.eye(self._width), pooled)
        return pooled.astype(np.float32)


def page_descriptors(
    descriptors: Float[np.ndarray, "b d"],
    lengths: Sequence[int | np.integer] | Int[np.ndarray, " p"],
    mode: str = "sum",
    alpha: float = 0.4,
) -> Float32[np.ndarray, "p d"]:
    """Pooling, power normalisation and L2 normalisation (the paper; reference: section 7).

    Args:
      descriptors: [b, d] patch descriptors, page after page.
      lengths: number of patches of each of the p pages; their sum is b.
      mode: as for `pool`.
      alpha: as for `power_norm`.

    Returns:
      float32 [p, d], unit rows; the row of a page without patches (or with a zero sum) is zero.

    Raises:
      ValueError: the sum of the lengths is not b, or as `pool` and `power_norm`.
    """
    ends = np.cumsum(lengths)
    if (ends[-1] if len(ends) else 0) != len(descriptors):
        raise ValueError(
            f"lengths add up to {sum(lengths)}, but there are {len(descriptors)} descriptors"
        )
    pages = np.split(descriptors, ends[:-1])
    return l2_normalize(power_norm(np.stack([pool(page, mode) for page in pages]), alpha))
