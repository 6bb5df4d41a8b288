"""Targets of the masked autoencoder: HOG or normalised pixels of a token.

Axis letters: b patches, l tokens, t target size, h w c image axes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.hog import hog, hog_dim
from saghog_jax.models.vit import patchify

TARGETS = ("hog_binary", "hog_gray", "hog_rgb", "pixel")
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def target_dim(kind: str, token_size: int, cell_size: int, num_bins: int) -> int:
    """Channels t of a token's target, the width of the decoder's output.

    Raises:
      ValueError: the kind is unknown, or the token size is not a multiple of the cell size.
    """
    _check(kind)
    if kind == "pixel":
        return 3 * token_size**2
    return hog_dim(num_bins, cell_size, token_size)


def make_targets(
    kind: str,
    patches: Float[AnyArray, "b h w 3"],
    binary: Float[AnyArray, "b h w 1"],
    token_size: int,
    cell_size: int,
    num_bins: int,
    half_precision: bool = False,
) -> Float[Array, "b l t"]:
    """Targets of all tokens.

    Args:
      kind: `hog_binary` (the paper), `hog_gray`, `hog_rgb` (the HOG of R + G + B) or `pixel`
        (normalised pixels of the token).
      patches: float32 [b, h, w, 3] in [0, 1], not normalised.
      binary: float32 [b, h, w, 1], 1 = paper, 0 = ink.
      token_size, cell_size: sides in pixels.
      num_bins: bins of the histogram.
      half_precision: see `hog`; without effect on pixels.

    Returns:
      float32 [b, l, t] with t = `target_dim(...)`; not meant to be differentiated.

    Raises:
      ValueError: the kind is unknown, or one size is not a multiple of the other.
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


def normalized_pixels(images: Float[AnyArray, "b h w c"], token_size: int) -> Float[Array, "b l t"]:
    """Pixels [b, l, token_size^2 * c], each token with mean 0 and (unbiased) variance 1."""
    tokens = patchify(images, token_size)
    mean = jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.var(tokens, axis=-1, keepdims=True, ddof=1)
    return (tokens - mean) / jnp.sqrt(variance + 1e-6)


def _check(kind: str) -> None:
    check_choice("target", kind, TARGETS)
