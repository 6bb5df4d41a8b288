"""The image encoder of Segment Anything: a ViT with windows and relative positions, and its neck.

Kirillov et al., Segment Anything, 2023, appendix A; the blocks are those of ViTDet. Submodules have
the published names, so that one rule maps the weights (weights.py).

Axis letters: b images (or windows), g side of the grid of tokens, l tokens of an image, d width,
n heads, h channels of a head; q, r row and column of a query, k, s row and column of a key.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from saghog_jax.models.layers import Dense, gelu, precision_of, product
from saghog_jax.models.vit import PatchEmbed, patchify

LAYER_NORM_EPSILON = 1e-6


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the last axis, of the image encoder and of the convolutions."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name=name)


def to_windows(x: jax.Array, side: int) -> jax.Array:
    """Cuts a grid, padded with zeros, into windows: [b, g, g, d] -> [b * windows, s, s, d]."""
    b, g, _, d = x.shape
    count = -(-g // side)
    padding = count * side - g
    x = jnp.pad(x, ((0, 0), (0, padding), (0, padding), (0, 0)))
    x = x.reshape(b, count, side, count, side, d).swapaxes(2, 3)
    return x.reshape(b * count * count, side, side, d)


def from_windows(windows: jax.Array, grid: int) -> jax.Array:
    """The inverse of `to_windows`, without the padding: -> [b, g, g, d]."""
    side, d = windows.shape[1], windows.shape[3]
    count = -(-grid // side)
    x = windows.reshape(-1, count, count, side, side, d).swapaxes(2, 3)
    return x.reshape(-1, count * side, count * side, d)[:, :grid, :grid]


def relative_positions(table: jax.Array, side: int) -> jax.Array:
    """Entries of a table [2 s - 1, h] for every pair (query, key) of positions: [s, s, h]."""
    offsets = np.arange(side)[:, None] - np.arange(side)[None, :] + side - 1
    return table[offsets]


class RelativeAttention(nn.Module):
    """Self-attention on a grid, with a term for the row distance and one for the column distance.

    Attributes:
      heads: number of heads.
      head_by_head: compute one head after the other: the [l, l] weights of all heads take gigabytes
        on the full grid. The result is the same.
      dtype: type of the operands of products.
    """

    heads: int
    head_by_head: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, g, g, d] -> [b, g, g, d]."""
        b, g, _, d = x.shape
        head_dim = d // self.heads
        qkv = Dense(3 * d, self.dtype, name="qkv")(x.reshape(b, g * g, d))
        # The axis of heads comes first: attention is mapped over it.
        qkv = qkv.reshape(b, g * g, 3, self.heads, head_dim).transpose(3, 2, 0, 1, 4)
        shape = (2 * g - 1, head_dim)
        tables = [
            relative_positions(self.param(name, nn.initializers.zeros, shape, jnp.float32), g)
            for name in ("rel_pos_h", "rel_pos_w")
        ]

        def attend(qkv: jax.Array) -> jax.Array:
            """Attention of one head: queries, keys and values [3, b, l, h] -> [b, l, h]."""
            q, k, v = qkv
            grid = q.reshape(b, g, g, head_dim)
            rows = product("bqrh,qkh->bqrk", grid, tables[0], self.dtype)
            columns = product("bqrh,rsh->bqrs", grid, tables[1], self.dtype)
            logits = product("blh,bmh->blm", q * head_dim**-0.5, k, self.dtype)
            logits = logits.reshape(b, g, g, g, g) + rows[..., :, None] + columns[..., None, :]
            weights = nn.softmax(logits.reshape(b, g * g, g * g))
            return product("blm,bmh->blh", weights, v, self.dtype)

        y = jax.lax.map(attend, qkv) if self.head_by_head else jax.vmap(attend)(qkv)
        y = y.transpose(1, 2, 0, 3).reshape(b, g * g, d)
        return Dense(d, self.dtype, name="proj")(y).reshape(b, g, g, d)


class Mlp(nn.Module):
    """Two dense layers with `activation` between them."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., d]."""
        y = self.activation(Dense(self.hidden, self.dtype, name="lin1")(x))
        return Dense(x.shape[-1], self.dtype, name="lin2")(y)


class ImageBlock(nn.Module):
    """Pre-norm block with attention within windows, or over the whole grid with `window=0`."""

    heads: int
    mlp_ratio: int
    window: int
    head_by_head: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, g, g, d] -> [b, g, g, d]."""
        y = layer_norm("norm1")(x)
        attention = RelativeAttention(
            self.heads, self.head_by_head and not self.window, self.dtype, name="attn"
        )
        if self.window:
            y = from_windows(attention(to_windows(y, self.window)), x.shape[1])
        else:
            y = attention(y)
        x = x + y
        mlp = Mlp(self.mlp_ratio * x.shape[-1], gelu, self.dtype, name="mlp")
        return x + mlp(layer_norm("norm2")(x))


class ImageEncoder(nn.Module):
    """Maps normalised square images to an embedding of 1/token_size of their side.

    Attributes:
      token_size: side of a token in pixels.
      width, depth, heads, mlp_ratio: sizes of the transformer.
      window: side of the windows in tokens.
      global_blocks: indices of the blocks with attention over the whole grid.
      features: channels of the embedding.
      head_by_head: see `RelativeAttention`; only for attention over the whole grid.
      dtype: type of the operands of products.
    """

    token_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: int
    window: int
    global_blocks: tuple[int, ...]
    features: int
    head_by_head: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[b, s, s, 3] -> [b, g, g, features], g = s / token_size."""
        b, side = images.shape[:2]
        g = side // self.token_size
        tokens = patchify(images, self.token_size)
        x = PatchEmbed(self.width, self.dtype, name="patch_embed")(tokens)
        shape = (1, g, g, self.width)
        x = x.reshape(b, g, g, self.width)
        x = x + self.param("pos_embed", nn.initializers.zeros, shape, jnp.float32)
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            x = ImageBlock(
                self.heads,
                self.mlp_ratio,
                window,
                self.head_by_head,
                self.dtype,
                name=f"blocks_{i}",
            )(x)
        # The neck: a 1 x 1 convolution and a 3 x 3 convolution, each with LayerNorm.
        x = x.reshape(b, g * g, self.width)
        x = Dense(self.features, self.dtype, use_bias=False, name="neck_0")(x)
        x = layer_norm("neck_1")(x).reshape(b, g, g, self.features)
        x = Convolution3(self.features, self.dtype, name="neck_2")(x)
        return layer_norm("neck_3")(x)


class Convolution3(nn.Module):
    """3 x 3 convolution without bias, padded with zeros."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, g, g, c] -> [b, g, g, features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(self.dtype),
            preferred_element_type=jnp.float32,
        )
