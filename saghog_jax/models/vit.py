"""The vision transformer that encodes patches (paper, section 3).

Axis letters: b patches, l tokens, k kept tokens, s tokens with CLS, d width, i values of a raw
token; h w c image axes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.blocks import Block, recomputed
from saghog_jax.models.inputs import CHANNELS
from saghog_jax.models.layers import Dense, LayerNorm, apply_dropout
from saghog_jax.models.pos_embed import sincos_2d


def patchify(images: Float[AnyArray, "b h w c"], token_size: int) -> Float[AnyArray, "b l i"]:
    """Cuts images [b, h, w, c] into tokens [b, l, token_size^2 * c], row-major in (row, col, c).

    Raises:
      ValueError: the sides are not multiples of `token_size`.
    """
    b, h, w, c = images.shape
    if h % token_size or w % token_size:
        raise ValueError(f"images of {h} x {w} pixels do not divide into tokens of {token_size}")
    rows, columns = h // token_size, w // token_size
    tokens = images.reshape(b, rows, token_size, columns, token_size, c).swapaxes(2, 3)
    return tokens.reshape(b, rows * columns, token_size * token_size * c)


class PatchEmbed(nn.Module):
    """Linear embedding of tokens: the published strided convolution as one matrix product."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[AnyArray, "b l i"], copies: int = 1) -> Float[Array, "b l d"]:
        """Embeds raw tokens.

        Args:
          tokens: [b, l, i], of `patchify`.
          copies: channels of the convolution that each channel of the tokens stands for.

        Returns:
          [b, l, d].
        """
        # The published convolution has PyTorch's default bias, U(+-1/sqrt(fan in)).
        bias_init = symmetric_uniform((copies * tokens.shape[-1]) ** -0.5)
        embed = Dense(self.width, self.dtype, bias_init=bias_init, copies=copies, name="proj")
        return embed(tokens)


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform between -bound and bound."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Encoder(nn.Module):
    """ViT with a CLS token, fixed positions and a final LayerNorm.

    Attributes:
      token_size: side of a token in pixels.
      width, depth, heads, mlp_ratio: sizes of the transformer.
      dropout: dropout rate of the tokens before the first block, with `train=True` only.
      remat: store only the input of each block for the gradient and recompute the rest.
      dtype: type of the operands of the products.
    """

    token_size: int = 4
    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: int = 4
    dropout: float = 0.1
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        self.cls_token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        self.patch_embed = PatchEmbed(self.width, self.dtype)
        self.block = [
            Block(self.heads, self.width, self.mlp_ratio, self.dtype) for _ in range(self.depth)
        ]
        self.norm = LayerNorm()
        self.drop = nn.Dropout(self.dropout)

    def embed(
        self, images: Float[AnyArray, "b h w c"], ids_keep: Int[AnyArray, "b k"] | None = None
    ) -> Float[Array, "b s d"]:
        """Tokens before the first block: CLS, then the embedded tokens with their positions.

        Args:
          images: float32 [b, h, w, c], normalised to (x - 0.5) / 0.5. One channel stands for three
            equal ones and takes a third of the work.
          ids_keep: int32 [b, k], kept tokens in the order of the result; None keeps all.

        Returns:
          [b, 1 + k, d].
        """
        b, h, w, channels = images.shape
        tokens = patchify(images, self.token_size)
        positions = jnp.asarray(sincos_2d(self.width, (h // self.token_size, w // self.token_size)))
        if ids_keep is not None:
            # Gathering pixels instead of embedded tokens saves work and has no gradient.
            tokens = jnp.take_along_axis(tokens, ids_keep[:, :, None], axis=1)
            positions = positions[ids_keep]
        # CLS has the position embedding zero.
        cls = jnp.broadcast_to(self.cls_token, (b, 1, self.width))
        embedded = self.patch_embed(tokens, CHANNELS if channels == 1 else 1)
        return jnp.concatenate([cls, embedded + positions], axis=1)

    def __call__(
        self, images: Float[AnyArray, "b h w c"], ids_keep: Int[AnyArray, "b k"] | None = None
    ) -> Float[Array, "b s d"]:
        """Encodes the kept tokens: [b, h, w, c] -> [b, 1 + k, d], CLS first, normalised."""
        x = self.embed(images, ids_keep)
        for i in range(self.depth):
            x = self._run_block(i, x)
        return self.norm(x)

    def tokens(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b s d"]:
        """All tokens for finetuning and evaluation: [b, h, w, c] -> [b, 1 + l, d], CLS first.

        Args:
          images: float32 [b, h, w, c], normalised to (x - 0.5) / 0.5.
          train: apply dropout to the tokens.
          dropout_keys: random keys [b], one per patch: a patch loses the same values in every
            batch. Without keys the rng stream `dropout` is used.
        """
        x = apply_dropout(self.drop, self.embed(images), train, dropout_keys)
        for i in range(self.depth):
            x = self._run_block(i, x)
        return self.norm(x)

    def features(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """The CLS token only: [b, h, w, c] -> [b, d], equal to `tokens(...)[:, 0]`.

        The last block computes only the query of CLS (with keys and values of all tokens). The
        result is exact and takes a tenth less work at paper size.
        """
        x = apply_dropout(self.drop, self.embed(images), train, dropout_keys)
        for i in range(self.depth - 1):
            x = self._run_block(i, x)
        return self.norm(self._run_block(self.depth - 1, x, slice(0, 1)))[:, 0]

    def _run_block(self, i: int, x: jax.Array, queries: slice = slice(None)) -> jax.Array:
        if self.remat:
            return recomputed(self.block[i], "__call__", x, queries)
        return self.block[i](x, queries)
