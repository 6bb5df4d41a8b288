"""What the masked autoencoder predicts for a token: HOG or normalised pixels.

Axis letters: b patches, l tokens, t target size, h w c image axes.
"""

import jax
import jax.numpy as jnp

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.models.hog import hog, hog_dim
from saghog_jax.models.vit import patchify

TARGETS = ("hog_binary", "hog_gray", "hog_rgb", "pixel")
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def target_dim(kind: str, token_size: int, cell_size: int, num_bins: int) -> int:
    """Channels t of a token's target, which is the width of the decoder's output.

    Raises:
      ValueError: an unknown kind, or a token that is no whole number of cells.
    """
    _check(kind)
    if kind == "pixel":
        return 3 * token_size**2
    return hog_dim(num_bins, cell_size, token_size)


def make_targets(
    kind: str,
    patches: jax.Array,
    binary: jax.Array,
    token_size: int,
    cell_size: int,
    num_bins: int,
    half_precision: bool = False,
) -> jax.Array:
    """Targets of all tokens.

    Args:
      kind: `hog_binary` (the paper), `hog_gray`, `hog_rgb` (which is the HOG of R + G + B) or
        `pixel` (pixels of the token, normalised).
      patches: float32 [b, h, w, 3] in [0, 1], not normalised.
      binary: float32 [b, h, w, 1], 1 = paper, 0 = ink.
      token_size, cell_size: pixels; `num_bins`: of the histogram.
      half_precision: see `hog`; no effect on pixels.

    Returns:
      float32 [b, l, t] with t = `target_dim(...)`; no gradient is meant to flow into it.

    Raises:
      ValueError: an unknown kind, sizes that do not divide.
    """
    _check(kind)
    if kind == "pixel":
        return normalized_pixels(patches, token_size)
    if kind == "hog_binary":
        images = binary
    elif kind == "hog_gray":
        images = jnp.sum(patches * jnp.asarray(GRAY_WEIGHTS), axis=-1, keepdims=True)
    else:
        images = patches
    return hog(images, num_bins, cell_size, token_size, half_precision)


def normalized_pixels(images: jax.Array, token_size: int) -> jax.Array:
    """Pixels [b, l, token_size^2 * c], each token with mean 0 and (unbiased) variance 1."""
    tokens = patchify(images, token_size)
    mean = jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.var(tokens, axis=-1, keepdims=True, ddof=1)
    return (tokens - mean) / jnp.sqrt(variance + 1e-6)


def _check(kind: str) -> None:
    check_choice("target", kind, TARGETS)
