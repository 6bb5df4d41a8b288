"""Segment Anything (SAM): sizes, and one module of image encoder, prompt encoder and mask decoder.

Kirillov et al., Segment Anything, 2023. Parameters have the names of the published weights, which
weights.py loads.

Axis letters: b images, s side of an image in pixels, g side of its embedding, d width, q prompts,
n points of a prompt, m masks of a prompt.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from saghog_jax.sam.image_encoder import ImageEncoder
from saghog_jax.sam.mask_decoder import MaskDecoder
from saghog_jax.sam.prompt_encoder import FOREGROUND, NO_POINT, PromptEncoder

# Mean and standard deviation for the normalisation of pixels.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
# Larger grids compute attention head by head: the [l, l] weights of 12 heads of the published grid
# of 4,096 tokens take 0.8 GB.
_TOKENS_AT_ONCE = 2048


@dataclasses.dataclass(frozen=True)
class SamSizes:
    """Sizes of a SAM; the defaults are common to all published models.

    Attributes:
      width, depth, heads: sizes of the image encoder's transformer.
      global_blocks: indices of its blocks with attention over the whole grid; the other blocks
        attend within windows.
      image_size: side of the images in pixels.
      token_size: side of a token in pixels.
      window: side of a window in tokens.
      mlp_ratio: MLP ratio of the image encoder's blocks.
      features: channels of the embedding, and width of the mask decoder.
      decoder_depth, decoder_heads, decoder_hidden: sizes of the mask decoder's transformer.
      decoder_inner: channels of its attention between tokens and image.
      masks: masks per ambiguous prompt, in addition to the mask for unambiguous prompts.
      iou_hidden, iou_depth: sizes of the head that predicts the IoU.
      mask_width: channels between the convolutions of mask prompts.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    token_size: int = 16
    window: int = 14
    mlp_ratio: int = 4
    features: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_inner: int = 128
    decoder_hidden: int = 2048
    masks: int = 3
    iou_hidden: int = 256
    iou_depth: int = 3
    mask_width: int = 16

    @property
    def grid(self) -> int:
        """Side of the embedding in tokens."""
        return self.image_size // self.token_size


SIZES = {
    "vit_b": SamSizes(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": SamSizes(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": SamSizes(1280, 32, 16, (7, 15, 23, 31)),
}


class Sam(nn.Module):
    """The whole model: `encode` runs once per image, `decode` for its prompts.

    Attributes:
      sizes: see `SamSizes`.
      dtype: type of the operands of products; everything else is float32.
    """

    sizes: SamSizes
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        s = self.sizes
        self.image_encoder = ImageEncoder(
            token_size=s.token_size,
            width=s.width,
            depth=s.depth,
            heads=s.heads,
            mlp_ratio=s.mlp_ratio,
            window=s.window,
            global_blocks=s.global_blocks,
            features=s.features,
            head_by_head=s.grid**2 > _TOKENS_AT_ONCE,
            dtype=self.dtype,
        )
        self.prompt_encoder = PromptEncoder(
            s.features, s.image_size, s.grid, s.mask_width, self.dtype
        )
        self.mask_decoder = MaskDecoder(
            width=s.features,
            depth=s.decoder_depth,
            heads=s.decoder_heads,
            inner=s.decoder_inner,
            hidden=s.decoder_hidden,
            masks=s.masks,
            iou_hidden=s.iou_hidden,
            iou_depth=s.iou_depth,
            dtype=self.dtype,
        )

    def encode(self, images: jax.Array) -> jax.Array:
        """Embeds images: normalised float32 [b, s, s, 3] -> [b, g, g, d]."""
        return self.image_encoder(images)

    def decode(
        self,
        embedding: jax.Array,
        points: jax.Array,
        labels: jax.Array,
        masks: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Masks for prompts on one image.

        Args:
          embedding: [g, g, d].
          points: float32 [q, n, 2], (x, y) in pixels of the s x s image.
          labels: int32 [q, n], see prompt_encoder.py.
          masks: logits [q, 4 g, 4 g] of mask prompts, or None.

        Returns:
          logits [q, 1 + m, 4 g, 4 g], above 0 inside a mask, and predicted IoU [q, 1 + m]. The
          first mask is for unambiguous prompts, the others are for a single point.
        """
        encoder = self.prompt_encoder
        dense = encoder.no_mask() if masks is None else encoder.masks(masks)
        image = embedding.reshape(1, -1, embedding.shape[-1]) + dense
        return self.mask_decoder(image, encoder.image_positions(), encoder.points(points, labels))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Uses every parameter, for `init`: masks of one point with and without a mask prompt."""
        embedding = self.encode(images)[0]
        point, label = single_points(jnp.zeros((1, 2)))
        logits, _ = self.decode(embedding, point, label)
        return self.decode(embedding, point, label, logits[:, 0])


def single_points(points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prompts of one foreground point each: [q, 2] -> points [q, 2, 2] and labels int32 [q, 2].

    The second point is NO_POINT, as in the published predictor for prompts without a box.
    """
    padded = jnp.stack([points, jnp.zeros_like(points)], axis=1)
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NO_POINT], jnp.int32), padded.shape[:2])
    return padded, labels


def parameter_shapes(sizes: SamSizes) -> dict:
    """The tree of parameters as ShapeDtypeStructs, without computing them."""
    images = jax.ShapeDtypeStruct((1, sizes.image_size, sizes.image_size, 3), jnp.float32)
    return jax.eval_shape(Sam(sizes).init, jax.random.key(0), images)["params"]
