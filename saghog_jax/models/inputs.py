"""From a batch of the loader to the input of a model, on the device.

Axis letters: b patches, h w c image axes. Images are float32 in [0, 1]; `binary` is 1 on paper and
0 on ink, float32 [b, h, w, 1].
"""

import jax.numpy as jnp
from jaxtyping import Float, UInt8

from saghog_jax.models.arrays import AnyArray

# Inputs of an encoder: the colours of the page, or its binarised ink.
INPUTS = ("page", "binary")
CHANNELS = 3  # Of an image; encoders take one channel for three equal ones.


def decode(
    batch: dict[str, UInt8[AnyArray, "b ..."]],
) -> tuple[Float[AnyArray, "b h w c"], Float[AnyArray, "b h w 1"]]:
    """Unpacks a batch of the loader.

    Args:
      batch: `patches` uint8 [b, h, w, c], c = 3 (RGB) or 0 (left out), and `ink` uint8
        [b, h * w / 8], packed bits, 1 = ink.

    Returns:
      images float32 [b, h, w, c] in [0, 1] and binary float32 [b, h, w, 1].
    """
    b, h, w, _ = batch["patches"].shape
    images = batch["patches"].astype(jnp.float32) / 255.0
    bits = jnp.unpackbits(batch["ink"], axis=-1).reshape(b, h, w, 1)
    return images, 1.0 - bits.astype(jnp.float32)


def normalize(images: Float[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
    """Scales [0, 1] to [-1, 1], the range that encoders expect."""
    return images * 2.0 - 1.0


def model_input(
    images: Float[AnyArray, "b h w c"], binary: Float[AnyArray, "b h w 1"], source: str
) -> Float[AnyArray, "b h w _"]:
    """The images that an encoder reads, not normalised.

    Args:
      source: one of `INPUTS`.

    Returns:
      [b, h, w, c] for `page`, [b, h, w, 1] for `binary`.
    """
    return binary if source == "binary" else images


def three_channels(images: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w 3"]:
    """Images with `CHANNELS` channels; a single channel is repeated."""
    return jnp.broadcast_to(images, (*images.shape[:3], CHANNELS))
