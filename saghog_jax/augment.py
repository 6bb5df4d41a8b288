"""From shipped bytes to images, and augmentation, on the device, batched.

Axis letters: b patches, h w c image axes. Images are float32 in [0, 1]; `binary` is 1 on paper and
0 on ink, float32 [b, h, w, 1]. Everything random is a function of the key alone.
"""

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

# ITU-R 601-2 luma, as in the published code.
_LUMA = (0.2989, 0.587, 0.114)


def decode(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Images and binary of a batch as the loader ships it.

    Args:
      batch: `patches` uint8 [b, h, w, 3] and `ink` uint8 [b, h * w / 8], bits, 1 = ink.

    Returns:
      images float32 [b, h, w, 3] in [0, 1] and binary float32 [b, h, w, 1].
    """
    b, h, w, _ = batch["patches"].shape
    images = batch["patches"].astype(jnp.float32) / 255.0
    bits = jnp.unpackbits(batch["ink"], axis=-1).reshape(b, h, w, 1)
    return images, 1.0 - bits.astype(jnp.float32)


def normalize(images: jax.Array) -> jax.Array:
    """[0, 1] to [-1, 1], what the encoder reads."""
    return images * 2.0 - 1.0


def to_gray(images: jax.Array) -> jax.Array:
    """Luma of [b, h, w, 3], repeated over the three channels."""
    gray = images @ jnp.asarray(_LUMA, images.dtype)
    return jnp.broadcast_to(gray[..., None], images.shape)


def random_gray(rng: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Patches become grey with the given probability, each by itself."""
    return _choose(rng, probability, to_gray(images), images)


def random_binarize(
    rng: jax.Array, images: jax.Array, binary: jax.Array, probability: float
) -> jax.Array:
    """Patches are replaced by their binary form with the given probability."""
    return _choose(rng, probability, jnp.broadcast_to(binary, images.shape), images)


def erode(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """Minimum over each patch's own 3x3 kernel: dark ink grows; outside is ignored.

    Args:
      images: float32 [b, h, w, c].
      kernels: bool [b, 3, 3]; out[y, x] is the minimum of in[y + dy, x + dx] where the kernel is
        set at (dy, dx), the kernel's centre being (0, 0).
    """
    return _morph(images, kernels, jnp.minimum, jnp.inf)


def dilate(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """Maximum over in[y - dy, x - dx] where the kernel is set: dark ink shrinks."""
    return _morph(images, kernels[:, ::-1, ::-1], jnp.maximum, -jnp.inf)


def random_kernels(rng: jax.Array, b: int) -> jax.Array:
    """bool [b, 3, 3], each cell set with probability one half, the centre always."""
    return jax.random.bernoulli(rng, 0.5, (b, 3, 3)).at[:, 1, 1].set(True)


def augment(rng: jax.Array, images: jax.Array, binary: jax.Array, config: ConfigDict) -> jax.Array:
    """The augmentations of a training stage, each with its own probability a patch.

    Args:
      rng: the key of this update's augmentation.
      images: float32 [b, h, w, 3] in [0, 1].
      binary: float32 [b, h, w, 1], what `binarize` swaps in.
      config: the `augment` section: probabilities `gray`, `binarize`, `erode`, `dilate`.
    """
    gray, binarize, erosion, dilation, kernel_a, kernel_b = jax.random.split(rng, 6)
    b = images.shape[0]
    if config.gray:
        images = random_gray(gray, images, config.gray)
    if config.binarize:
        images = random_binarize(binarize, images, binary, config.binarize)
    if config.erode:
        images = _choose(erosion, config.erode, erode(images, random_kernels(kernel_a, b)), images)
    if config.dilate:
        thinner = dilate(images, random_kernels(kernel_b, b))
        images = _choose(dilation, config.dilate, thinner, images)
    return images


def _choose(rng: jax.Array, probability: float, new: jax.Array, old: jax.Array) -> jax.Array:
    chosen = jax.random.bernoulli(rng, probability, (old.shape[0], 1, 1, 1))
    return jnp.where(chosen, new, old)


def _morph(images: jax.Array, kernels: jax.Array, best: object, neutral: float) -> jax.Array:
    b, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=neutral)
    out = jnp.full_like(images, neutral)
    for dy in range(3):
        for dx in range(3):
            shifted = lax.dynamic_slice(padded, (0, dy, dx, 0), (b, h, w, images.shape[-1]))
            out = best(out, jnp.where(kernels[:, dy, dx, None, None, None], shifted, neutral))
    return out
