"""Augmentation of batches of patches on the device.

Axis letters: b patches, h w c image axes. Images are float32 in [0, 1]; `binary` is 1 on paper and
0 on ink, float32 [b, h, w, 1]. All random numbers depend on the key only. Augmentation that moves
the ink (`move`) is applied to images and binary alike, so that targets computed from them still
match; the rest (`augment`) is applied to the input of the encoder.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.models import inputs

# ITU-R 601-2 luma, as in the published code.
_LUMA = (0.2989, 0.587, 0.114)


def to_gray(images: jax.Array) -> jax.Array:
    """Luma of images [b, h, w, 3], repeated over the three channels."""
    gray = jnp.matmul(images, jnp.asarray(_LUMA, images.dtype), precision="highest")
    return jnp.broadcast_to(gray[..., None], images.shape)


def random_gray(rng: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Turns each patch grey with the probability `probability`."""
    return _choose(rng, probability, to_gray(images), images)


def random_binarize(
    rng: jax.Array, images: jax.Array, binary: jax.Array, probability: float
) -> jax.Array:
    """Replaces each patch by its binary form with the probability `probability`.

    With the probability 1 the result is `binary`, with one channel.
    """
    if probability == 1:
        return binary
    return _choose(rng, probability, jnp.broadcast_to(binary, images.shape), images)


def erode(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """Erosion: the minimum over a 3x3 kernel per patch; dark ink grows.

    Pixels outside of the image are ignored.

    Args:
      images: float32 [b, h, w, c].
      kernels: bool [b, 3, 3]; out[y, x] is the minimum of in[y + dy, x + dx] over all (dy, dx)
        where the kernel is set; the centre of the kernel is (0, 0).
    """
    return _morph(images, kernels, jnp.minimum, jnp.inf)


def dilate(images: jax.Array, kernels: jax.Array) -> jax.Array:
    """Dilation: the maximum of in[y - dy, x - dx] over the kernel; dark ink shrinks."""
    return _morph(images, kernels[:, ::-1, ::-1], jnp.maximum, -jnp.inf)


def random_kernels(rng: jax.Array, b: int) -> jax.Array:
    """Kernels bool [b, 3, 3]: each cell is set with probability 1/2, the centre always."""
    return jax.random.bernoulli(rng, 0.5, (b, 3, 3)).at[:, 1, 1].set(True)


def affine(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Resamples each patch by an affine map per patch, bilinearly; the outside is paper (1).

    Args:
      images: float32 [b, h, w, c].
      matrices: float32 [b, 2, 3]; pixel (x, y) of the result is interpolated from the patch at the
        coordinates matrix @ (x, y, 1); whole coordinates are the centres of pixels.
    """

    def corners(top: jax.Array, left: jax.Array) -> Iterator[jax.Array]:
        padded = _with_paper(images)
        take = jax.vmap(lambda p, r, c: p.at[r, c].get(mode="promise_in_bounds"))
        for row in (top, top + 1):
            yield from (take(padded, row, column) for column in (left, left + 1))

    return _interpolated(corners, matrices, *images.shape[1:3])


def affine_binary(binary: jax.Array, matrices: jax.Array) -> jax.Array:
    """`affine` of binary patches (0 or 1).

    The four neighbours of a point are four bits of one number, so that one gather takes the place
    of four. Gathers are slow on CPUs.
    """

    def corners(top: jax.Array, left: jax.Array) -> Iterator[jax.Array]:
        bits = _with_paper(binary)[..., 0].astype(jnp.uint8)
        rows = bits[:, :-1] | bits[:, 1:] << 2
        codes = rows[:, :, :-1] | rows[:, :, 1:] << 1
        take = jax.vmap(lambda p, r, c: p.at[r, c].get(mode="promise_in_bounds"))
        code = take(codes, top, left)[..., None]
        return ((code >> i & 1).astype(jnp.float32) for i in range(4))

    return _interpolated(corners, matrices, *binary.shape[1:3])


def _with_paper(images: jax.Array) -> jax.Array:
    """Images [b, 3 + h, 3 + w, c]: one pixel of paper above and at the left, two at the others.

    One pixel of paper around the patch suffices: it stands for all paper outside.
    """
    return jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=1.0)


def _interpolated(
    corners: Callable[[jax.Array, jax.Array], Iterable[jax.Array]],
    matrices: jax.Array,
    h: int,
    w: int,
) -> jax.Array:
    """The bilinear interpolation of `affine`.

    Args:
      corners: gives, of rows and columns [b, h, w] of `_with_paper`, the four pixels [b, h, w, c]
        there: upper left, upper right, lower left, lower right.
      matrices: as for `affine`.
      h, w: sides of the result.
    """
    y, x = jnp.indices((h, w), jnp.float32)
    m = matrices[..., None, None]
    from_x = jnp.clip(m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2], -1, w)
    from_y = jnp.clip(m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2], -1, h)
    left, top = jnp.floor(from_x), jnp.floor(from_y)
    right_weight, lower_weight = (from_x - left)[..., None], (from_y - top)[..., None]
    pixels = corners(top.astype(jnp.int32) + 1, left.astype(jnp.int32) + 1)
    upper_left, upper_right, lower_left, lower_right = pixels

    def interpolate(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
        return a * (1.0 - weight) + b * weight

    upper = interpolate(upper_left, upper_right, right_weight)
    lower = interpolate(lower_left, lower_right, right_weight)
    return interpolate(upper, lower, lower_weight)


def random_matrices(
    rng: jax.Array,
    b: int,
    h: int,
    w: int,
    degrees: float,
    translate: float,
    scale_low: float,
    scale_high: float,
) -> jax.Array:
    """Random maps for `affine`, float32 [b, 2, 3]: rotation, scaling and translation per patch.

    Args:
      rng: random key.
      b: number of patches.
      h, w: sides of the patches in pixels.
      degrees: largest rotation about the centre, in both directions.
      translate: largest translation as a fraction of the sides, in both directions.
      scale_low, scale_high: range of the magnification.
    """
    rotation_key, shift_key, scale_key = jax.random.split(rng, 3)
    limit = float(np.deg2rad(degrees))
    angle = jax.random.uniform(rotation_key, (b,), minval=-limit, maxval=limit)
    scale = jax.random.uniform(scale_key, (b,), minval=scale_low, maxval=scale_high)
    shift = jax.random.uniform(shift_key, (b, 2), minval=-translate, maxval=translate)
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    linear = jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)
    centre = jnp.asarray([(w - 1) / 2, (h - 1) / 2], jnp.float32)
    target = centre + shift * jnp.asarray([w, h], jnp.float32)
    offset = centre - jnp.einsum("bij,bj->bi", linear, target, precision="highest")
    return jnp.concatenate([linear, offset[..., None]], axis=-1)


def jitter(
    images: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array
) -> jax.Array:
    """Changes brightness, then contrast, then saturation by one factor [b] per patch.

    The formulas are those of torchvision: the patch, weighted by the factor, is blended with black,
    with its mean luma, and with its luma, then clipped to [0, 1]. A factor of 1 changes nothing.
    """

    def blend(images: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
        factor = factor[:, None, None, None]
        return jnp.clip(factor * images + (1.0 - factor) * other, 0.0, 1.0)

    images = blend(images, 0.0, brightness)
    images = blend(images, to_gray(images).mean((1, 2, 3), keepdims=True), contrast)
    return blend(images, to_gray(images), saturation)


def move(
    rng: jax.Array, images: jax.Array, binary: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Rotates, scales and translates each patch with the probability `config.affine`.

    Args:
      rng: random key of the update.
      images: float32 [b, h, w, 3] in [0, 1].
      binary: float32 [b, h, w, 1]; moved as the images, then rounded so that it stays binary.
      config: the `augment` section.

    Raises:
      UserError: a field of the section is outside of its range.
    """
    _check(config)
    if not config.affine:
        return images, binary
    choice_key, matrix_key = jax.random.split(rng)
    matrices = random_matrices(
        matrix_key,
        *images.shape[:3],
        config.degrees,
        config.translate,
        config.scale_low,
        config.scale_high,
    )
    moved = jnp.where(affine_binary(binary, matrices) > 0.5, 1.0, 0.0)
    return (
        _choose(choice_key, config.affine, affine(images, matrices), images),
        _choose(choice_key, config.affine, moved, binary),
    )


def augment(rng: jax.Array, images: jax.Array, binary: jax.Array, config: ConfigDict) -> jax.Array:
    """The augmentations that keep the ink in place, each with its probability per patch.

    Args:
      rng: random key of the update.
      images: float32 [b, h, w, 3] in [0, 1], or [b, h, w, 1] for three equal channels.
      binary: float32 [b, h, w, 1], the patch that `binarize` inserts.
      config: the `augment` section.

    Returns:
      [b, h, w, 3], or [b, h, w, 1] where the three channels of all patches would be equal.

    Raises:
      UserError: a field of the section is outside of its range.
    """
    _check(config)
    if config.jitter or config.gray or 0 < config.binarize < 1:
        images = inputs.three_channels(images)
    gray, binarize, erosion, dilation, kernel_a, kernel_b, colour, factors = jax.random.split(
        rng, 8
    )
    b = images.shape[0]
    if config.jitter:
        changed = jitter(images, *_random_factors(factors, b, config))
        images = _choose(colour, config.jitter, changed, images)
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


def _check(config: ConfigDict) -> None:
    for name in ("gray", "binarize", "erode", "dilate", "affine", "jitter"):
        if not 0 <= config[name] <= 1:
            raise UserError(f"augment.{name}={config[name]} is a probability, 0 to 1")
    for name in ("degrees", "translate", "brightness", "contrast", "saturation"):
        if config[name] < 0:
            raise UserError(f"augment.{name}={config[name]} must not be negative")
    if not 0 < config.scale_low <= config.scale_high:
        raise UserError(
            f"augment.scale_low={config.scale_low} and augment.scale_high={config.scale_high} must "
            "satisfy 0 < scale_low <= scale_high"
        )


def _random_factors(rng: jax.Array, b: int, config: ConfigDict) -> list[jax.Array]:
    strengths = (config.brightness, config.contrast, config.saturation)
    return [
        jax.random.uniform(key, (b,), minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)
        for key, strength in zip(jax.random.split(rng, 3), strengths, strict=True)
    ]


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
