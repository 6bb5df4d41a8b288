"""Histograms of oriented gradients, the target of pretraining (paper, section 3).

Axis letters: b patches, l tokens, t target size, h w c image axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ZERO_GRADIENT = 1e-6  # Smaller |gx| is rounding noise of a gradient that is zero.


def hog_dim(num_bins: int, cell_size: int, token_size: int) -> int:
    """Channels t of a token: bins times cells.

    Raises:
      ValueError: a token is no whole number of cells.
    """
    if not 0 < cell_size <= token_size or token_size % cell_size:
        raise ValueError(
            f"token_size {token_size} must be a multiple of cell_size {cell_size}: "
            f"a token holds whole cells"
        )
    return num_bins * (token_size // cell_size) ** 2


def hog(
    images: Float[Array, "b h w c"],
    num_bins: int = 9,
    cell_size: int = 4,
    token_size: int = 4,
    half_precision: bool = False,
) -> Float[Array, "b l t"]:
    """Histograms of unsigned gradient orientation, L2-normalised cell by cell.

    Sobel gradients of the reflected image, hard assignment to `num_bins` bins of 180 degrees,
    plain sums over cells, no blocks. Gradients of the channels are summed before anything else (as
    in the published code), so that the HOG of an RGB image is that of R + G + B. Where the
    horizontal gradient vanishes the bin is 0; the published code lets rounding noise decide there
    (left and right border of images that are not binary) between the first and the last bin.

    Args:
      images: float32 [b, h, w, c], values in [0, 1], not normalised.
      num_bins, cell_size, token_size: of the histogram; sizes in pixels.
      half_precision: orientations in float16, as the published training computes its targets
        under mixed precision: edges with vertical gradient of one sign move from the first to the
        last bin.

    Returns:
      float32 [b, l, t]; tokens row-major, within a token bin-major, then cell row, cell column. A
      cell without any gradient is zero.

    Raises:
      ValueError: tokens are no whole number of cells, or images no whole number of tokens.
    """
    b, h, w, _ = images.shape
    dim = hog_dim(num_bins, cell_size, token_size)
    if h % token_size or w % token_size:
        raise ValueError(f"images of {h} x {w} pixels do not divide into tokens of {token_size}")
    gx, gy = _sobel(images.sum(axis=-1))
    magnitude = jnp.sqrt(gx * gx + gy * gy)
    bins = (_bins_half if half_precision else _bins)(gx, gy, num_bins)
    votes = jnp.where(
        bins[:, None] == jnp.arange(num_bins)[:, None, None], magnitude[:, None], jnp.float32(0)
    )
    # Rows first, columns second: on CPUs four times as fast as one sum over both.
    cells = votes.reshape(b, num_bins, h // cell_size, cell_size, w).sum(axis=3)
    cells = cells.reshape(b, num_bins, h // cell_size, w // cell_size, cell_size).sum(axis=4)
    norm = jnp.sqrt(jnp.sum(cells * cells, axis=1, keepdims=True))
    cells = cells / jnp.maximum(norm, 1e-12)
    side = token_size // cell_size
    cells = cells.reshape(b, num_bins, h // token_size, side, w // token_size, side)
    # [b, bin, row, cell row, column, cell column] -> [b, (row, column), (bin, cell row, column)]
    return cells.transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, dim)


def _sobel(gray: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[b, h, w] -> gx (left minus right) and gy (upper minus lower), [b, h, w]."""
    padded = jnp.pad(gray, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    smooth_rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (
        smooth_rows[:, :, :-2] - smooth_rows[:, :, 2:],
        smooth_columns[:, :-2] - smooth_columns[:, 2:],
    )


def _bins(gx: jax.Array, gy: jax.Array, num_bins: int) -> jax.Array:
    """floor(atan2(gx, gy) / pi * num_bins) mod num_bins, without the arc tangent.

    The gradient is turned into the half-plane gx >= 0; its bin is the number of the bin borders
    that it has passed, each a sign of a cross product.
    """
    gx = jnp.where(jnp.abs(gx) < ZERO_GRADIENT, jnp.float32(0), gx)
    gy = jnp.where(gx < 0, -gy, jnp.where(gx == 0, jnp.abs(gy), gy))
    gx = jnp.abs(gx)
    borders = np.arange(1, num_bins) * (np.pi / num_bins)
    passed = [np.float32(np.cos(angle)) * gx >= np.float32(np.sin(angle)) * gy for angle in borders]
    return sum((p.astype(jnp.int32) for p in passed), start=jnp.zeros(gx.shape, jnp.int32))


def _bins_half(gx: jax.Array, gy: jax.Array, num_bins: int) -> jax.Array:
    # Rounded after each step rather than typed float16, which compilers may widen again.
    phase = _round_half(jnp.arctan2(_round_half(gx), _round_half(gy)))
    turns = _round_half(_round_half(phase / np.float32(np.pi)) * num_bins)
    return jnp.floor(turns).astype(jnp.int32) % num_bins


def _round_half(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
