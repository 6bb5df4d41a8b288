"""The mask decoder of Segment Anything: attention between prompts and image, then masks.

Kirillov et al., Segment Anything, 2023, appendix A. Submodules have the published names.

Axis letters: q prompts, t tokens of a prompt (IoU, masks, points), l pixels of the embedding of the
image, d width, n heads, h channels of a head, m masks of a prompt, g side of the embedding.
Arrays that depend on the image only have a first axis of 1; their projections are computed once for
all prompts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from saghog_jax.models.layers import LAYER_NORM_EPSILON, Dense, gelu, product
from saghog_jax.sam.image_encoder import Mlp, layer_norm
from saghog_jax.sam.prompt_encoder import Embedding


def token_norm(name: str) -> nn.LayerNorm:
    """LayerNorm of the two-way transformer; its epsilon differs from that of the image encoder."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name=name)


class CrossAttention(nn.Module):
    """Multi-head attention with projections to `inner` channels."""

    heads: int
    inner: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """[q, t, d], [q, k, d], [q, k, d] -> [q, t, d]; the first axis of each may be 1."""
        d = queries.shape[-1]
        prompts = max(len(queries), len(keys))

        def project(name: str, x: jax.Array) -> jax.Array:
            y = Dense(self.inner, self.dtype, name=name)(x)
            y = y.reshape(len(x), -1, self.heads, self.inner // self.heads).swapaxes(1, 2)
            return jnp.broadcast_to(y, (prompts, *y.shape[1:]))

        q, k, v = project("q_proj", queries), project("k_proj", keys), project("v_proj", values)
        logits = product("qnth,qnkh->qntk", q, k, self.dtype) * q.shape[-1] ** -0.5
        y = product("qntk,qnkh->qnth", nn.softmax(logits), v, self.dtype)
        y = y.swapaxes(1, 2).reshape(prompts, -1, self.inner)
        return Dense(d, self.dtype, name="out_proj")(y)


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, then the image attends to the tokens."""

    heads: int
    inner: int
    hidden: int
    is_first: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, image: jax.Array, prompt: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[q, t, d] tokens and [1 or q, l, d] image -> the same, the image with q rows.

        Args:
          prompt: [q, t, d], the initial tokens, added to the tokens as their positions.
          positions: [1, l, d], positions of the pixels of the image.
        """
        d = tokens.shape[-1]
        self_attention = CrossAttention(self.heads, d, self.dtype, name="self_attn")
        if self.is_first:
            tokens = self_attention(tokens, tokens, tokens)
        else:
            tokens = tokens + self_attention(tokens + prompt, tokens + prompt, tokens)
        tokens = token_norm("norm1")(tokens)
        to_image = CrossAttention(
            self.heads, self.inner, self.dtype, name="cross_attn_token_to_image"
        )
        tokens = token_norm("norm2")(tokens + to_image(tokens + prompt, image + positions, image))
        mlp = Mlp(self.hidden, nn.relu, self.dtype, name="mlp")
        tokens = token_norm("norm3")(tokens + mlp(tokens))
        to_tokens = CrossAttention(
            self.heads, self.inner, self.dtype, name="cross_attn_image_to_token"
        )
        image = token_norm("norm4")(image + to_tokens(image + positions, tokens + prompt, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a final attention of the tokens to the image."""

    depth: int
    heads: int
    inner: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, positions: jax.Array, prompt: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[1 or q, l, d] image, [1, l, d] positions, [q, t, d] prompt -> [q, t, d], [q, l, d]."""
        tokens = prompt
        for i in range(self.depth):
            tokens, image = TwoWayBlock(
                self.heads, self.inner, self.hidden, i == 0, self.dtype, name=f"layers_{i}"
            )(tokens, image, prompt, positions)
        last = CrossAttention(self.heads, self.inner, self.dtype, name="final_attn_token_to_image")
        tokens = tokens + last(tokens + prompt, image + positions, image)
        return token_norm("norm_final_attn")(tokens), image


class Perceptron(nn.Module):
    """Dense layers with ReLU between them."""

    widths: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[q, d] -> [q, widths[-1]]."""
        for i, width in enumerate(self.widths):
            x = Dense(width, self.dtype, name=f"layers_{i}")(nn.relu(x) if i else x)
        return x


class Upscale(nn.Module):
    """2 x 2 transposed convolution with stride 2, as one product."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[q, g, g, c] -> [q, 2 g, 2 g, features]."""
        q, g, _, c = x.shape
        shape = (c, 4 * self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = product("qlc,cf->qlf", x.reshape(q, g * g, c), kernel, self.dtype)
        y = y.reshape(q, g, g, 2, 2, self.features).swapaxes(2, 3)
        return y.reshape(q, 2 * g, 2 * g, self.features) + bias


class MaskDecoder(nn.Module):
    """Predicts masks for prompts, and the IoU of each mask.

    Attributes:
      width: channels of the embeddings.
      depth, heads, inner, hidden: sizes of the two-way transformer.
      masks: masks per ambiguous prompt, in addition to the first mask for unambiguous prompts.
      iou_hidden, iou_depth: sizes of the head that predicts the IoU.
      dtype: type of the operands of products.
    """

    width: int
    depth: int
    heads: int
    inner: int
    hidden: int
    masks: int
    iou_hidden: int
    iou_depth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, positions: jax.Array, prompts: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Decodes the prompts of one image.

        Args:
          image: [1 or q, l, d], embedding of the image plus embedding of the mask prompt.
          positions: [1, l, d].
          prompts: [q, n, d], embedded points.

        Returns:
          logits [q, 1 + m, 4 g, 4 g], above 0 inside a mask, and predicted IoU [q, 1 + m].
        """
        q, count, d = len(prompts), 1 + self.masks, self.width
        grid = round(image.shape[1] ** 0.5)
        output_tokens = jnp.concatenate(
            [Embedding(1, d, name="iou_token")(), Embedding(count, d, name="mask_tokens")()]
        )
        tokens = jnp.broadcast_to(output_tokens, (q, *output_tokens.shape))
        tokens = jnp.concatenate([tokens, prompts], axis=1)
        transformer = TwoWayTransformer(
            self.depth, self.heads, self.inner, self.hidden, self.dtype, name="transformer"
        )
        tokens, image = transformer(image, positions, tokens)
        x = Upscale(d // 4, self.dtype, name="output_upscaling_0")(image.reshape(q, grid, grid, d))
        x = gelu(layer_norm("output_upscaling_1")(x))
        x = gelu(Upscale(d // 8, self.dtype, name="output_upscaling_3")(x))
        # A separate network for each mask turns its token into weights of the channels.
        weights = [
            Perceptron((d, d, d // 8), self.dtype, name=f"output_hypernetworks_mlps_{i}")(
                tokens[:, 1 + i]
            )
            for i in range(count)
        ]
        pixels = x.reshape(q, -1, d // 8)
        logits = product("qmc,qlc->qml", jnp.stack(weights, axis=1), pixels, self.dtype)
        widths = (*(self.iou_hidden,) * (self.iou_depth - 1), count)
        iou = Perceptron(widths, self.dtype, name="iou_prediction_head")(tokens[:, 0])
        return logits.reshape(q, count, 4 * grid, 4 * grid), iou
