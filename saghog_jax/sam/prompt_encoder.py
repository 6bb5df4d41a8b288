"""The prompt encoder of Segment Anything: embeds points, corners of boxes and coarse masks.

Kirillov et al., Segment Anything, 2023, appendix A. Submodules have the published names.

Axis letters: q prompts, n points of a prompt, d width, g side of the embedding of the image.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from saghog_jax.models.layers import Dense, gelu
from saghog_jax.models.vit import patchify
from saghog_jax.sam.image_encoder import layer_norm

# Labels of points: padding of a prompt, background, foreground, the corners of a box.
NO_POINT, BACKGROUND, FOREGROUND, BOX_START, BOX_END = -1, 0, 1, 2, 3


class FourierPositions(nn.Module):
    """Sines and cosines of positions at random frequencies, which are part of the weights."""

    width: int

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """[..., 2] (x, y) between 0 and 1 -> [..., d]."""
        frequencies = self.param(
            "positional_encoding_gaussian_matrix",
            nn.initializers.normal(1.0),
            (2, self.width // 2),
            jnp.float32,
        )
        # In float32, because the angles are large. A sum of two terms, because accelerators would
        # round the operands of a matrix product.
        p = 2 * positions - 1
        angles = 2 * jnp.pi * (p[..., :1] * frequencies[0] + p[..., 1:] * frequencies[1])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class PromptEncoder(nn.Module):
    """Embeds prompts.

    Attributes:
      width: channels of the embeddings.
      image_size: side of the images in pixels; coordinates are pixels of these images.
      grid: side of the embedding of the image.
      mask_width: channels between the convolutions of coarse masks.
      dtype: type of the operands of products.
    """

    width: int
    image_size: int
    grid: int
    mask_width: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.pe_layer = FourierPositions(self.width)
        self.point_embeddings = [Embedding(1, self.width) for _ in range(4)]
        self.not_a_point_embed = Embedding(1, self.width)
        self.no_mask_embed = Embedding(1, self.width)
        quarter = self.mask_width // 4
        self.mask_downscaling_0 = Dense(quarter, self.dtype)
        self.mask_downscaling_1 = layer_norm()
        self.mask_downscaling_3 = Dense(self.mask_width, self.dtype)
        self.mask_downscaling_4 = layer_norm()
        self.mask_downscaling_6 = Dense(self.width, self.dtype)

    def image_positions(self) -> jax.Array:
        """Position embeddings of the pixels of the image embedding, [1, g * g, d], row by row."""
        steps = (jnp.arange(self.grid, dtype=jnp.float32) + 0.5) / self.grid
        y, x = jnp.meshgrid(steps, steps, indexing="ij")
        return self.pe_layer(jnp.stack([x, y], axis=-1).reshape(1, -1, 2))

    def points(self, points: jax.Array, labels: jax.Array) -> jax.Array:
        """Embeds points and corners of boxes; the published order is points, then corners.

        Args:
          points: float32 [q, n, 2], (x, y) in pixels of the image of the encoder.
          labels: int32 [q, n], constants of this module; a prompt without a box ends with NO_POINT.

        Returns:
          [q, n, d].
        """
        positions = self.pe_layer((points + 0.5) / self.image_size)
        embeddings = [
            self.not_a_point_embed(),
            *(embedding() for embedding in self.point_embeddings),
        ]
        table = jnp.concatenate(embeddings)
        is_point = (labels != NO_POINT)[..., None]
        return jnp.where(is_point, positions, 0.0) + table[labels - NO_POINT]

    def no_mask(self) -> jax.Array:
        """The embedding of a missing mask: [1, 1, d]."""
        return self.no_mask_embed()[None]

    def masks(self, masks: jax.Array) -> jax.Array:
        """Embeds coarse masks, logits [q, 4 g, 4 g] -> [q, g * g, d]."""
        q, side = masks.shape[:2]
        x = self.mask_downscaling_0(patchify(masks[..., None], 2))
        x = gelu(self.mask_downscaling_1(x)).reshape(q, side // 2, side // 2, -1)
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(patchify(x, 2))))
        return self.mask_downscaling_6(x)


class Embedding(nn.Module):
    """A table of learned vectors."""

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """[rows, width]."""
        shape = (self.rows, self.width)
        return self.param("embedding", nn.initializers.normal(1.0), shape, jnp.float32)
