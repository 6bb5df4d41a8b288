"""The masked autoencoder of pretraining (paper, section 3).

Axis letters: b patches, l tokens, k kept tokens, r removed tokens, d encoder width, e decoder
width, t target size, s tokens with CLS; h w c image axes.

The loss has two forms with the same value and gradients. `__call__` predicts every token, as the
published code does, and `masked_loss` averages over the removed tokens: pictures of reconstructions
use it. `removed` computes the last decoder block for the removed tokens only, and `removed_errors`
gives the error of each patch: training uses it.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.blocks import Block, recomputed
from saghog_jax.models.layers import Dense, LayerNorm, product
from saghog_jax.models.pos_embed import sincos_2d
from saghog_jax.models.vit import Encoder


class Masking(NamedTuple):
    """The kept and the removed tokens of each patch.

    Attributes:
      ids_keep: int32 [b, k], kept tokens in the order of their noise (not of their position).
      ids_removed: int32 [b, r], removed tokens in the order of their noise.
    """

    ids_keep: Int[Array, "b k"]
    ids_removed: Int[Array, "b r"]

    @property
    def ids_restore(self) -> Int[Array, "b l"]:
        """int32 [b, l]: position of token l in the sequence of kept, then removed tokens."""
        return jnp.argsort(jnp.concatenate(self, axis=1), axis=1)

    @property
    def mask(self) -> Float[Array, "b l"]:
        """float32 [b, l]: 1 = removed, 0 = kept."""
        return (self.ids_restore >= self.ids_keep.shape[1]).astype(jnp.float32)


def num_keep(num_tokens: int, mask_ratio: float) -> int:
    """Number of kept tokens: num_tokens * (1 - mask_ratio), rounded down.

    A product that differs from a whole number only by float rounding (100 tokens at 0.9) counts as
    the whole number; the published `int()` loses a token there. With 16 or 64 tokens and the
    published ratios both agree.

    Raises:
      ValueError: no token or every token would be kept.
    """
    k = math.floor(num_tokens * (1 - mask_ratio) + 1e-9)
    if not 0 < k < num_tokens:
        raise ValueError(
            f"mask_ratio {mask_ratio} keeps {k} of {num_tokens} tokens; it must keep at least one "
            f"and remove at least one"
        )
    return k


def mask_noise(
    key: PRNGKeyArray, batch: int, num_tokens: int
) -> Float[Array, "{batch} {num_tokens}"]:
    """Uniform noise [batch, num_tokens]; `random_masking` orders the tokens by it."""
    return jax.random.uniform(key, (batch, num_tokens))


def random_masking(noise: Float[AnyArray, "b l"], mask_ratio: float) -> Masking:
    """Keeps the tokens with the smallest noise [b, l]; of equal ones the earlier token."""
    k = num_keep(noise.shape[1], mask_ratio)
    ids_shuffle = jnp.argsort(noise, axis=1).astype(jnp.int32)
    return Masking(ids_shuffle[:, :k], ids_shuffle[:, k:])


def masked_loss(
    pred: Float[AnyArray, "b l t"], target: Float[AnyArray, "b l t"], mask: Float[AnyArray, "b l"]
) -> Float[Array, ""]:
    """Mean squared error of a token, averaged over the removed tokens.

    Args:
      pred, target: [b, l, t].
      mask: [b, l], 1 = removed.
    """
    error = jnp.mean(jnp.square(pred - target), axis=-1)
    return jnp.sum(error * mask) / jnp.sum(mask)


def removed_errors(
    pred: Float[AnyArray, "b r t"],
    target: Float[AnyArray, "b l t"],
    ids_removed: Int[AnyArray, "b r"],
) -> Float[Array, " b"]:
    """Mean squared error of the removed tokens of each patch, [b]; its mean is `masked_loss`.

    Args:
      pred: [b, r, t], predictions for the tokens `ids_removed`.
      target: [b, l, t], targets of all tokens.
      ids_removed: int32 [b, r].
    """
    removed_target = jnp.take_along_axis(target, ids_removed[:, :, None], 1)
    return jnp.mean(jnp.square(pred - removed_target), axis=(1, 2))


class Decoder(nn.Module):
    """Predicts the target of removed tokens from the latent of the kept tokens.

    Attributes:
      width, depth, heads, mlp_ratio: sizes of the transformer.
      target_dim: t, see `saghog_jax.models.targets.target_dim`.
      grid: rows and columns of tokens in a patch.
      dtype: type of the operands of the products.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: int
    target_dim: int
    grid: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"decoder width {self.width} is not divisible by {self.heads} heads")
        self.embed = Dense(self.width, self.dtype)
        self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        self.block = [
            Block(self.heads, self.width, self.mlp_ratio, self.dtype) for _ in range(self.depth)
        ]
        self.norm = LayerNorm()
        self.pred = Dense(self.target_dim, self.dtype)

    def __call__(self, latent: Float[Array, "b s d"], masking: Masking) -> Float[Array, "b l t"]:
        """Predicts every token, in the order of positions: [b, 1 + k, d] -> [b, l, t]."""
        x = self.embed(latent)
        b, r = masking.ids_removed.shape
        removed = jnp.broadcast_to(self.mask_token, (b, r, self.width))
        shuffled = jnp.concatenate([x[:, 1:], removed], axis=1)
        tokens = jnp.take_along_axis(shuffled, masking.ids_restore[:, :, None], axis=1)
        x = jnp.concatenate([x[:, :1], tokens + self._positions()], axis=1)
        for block in self.block:
            x = block(x)
        return self.pred(self.norm(x))[:, 1:]

    def removed(self, latent: Float[Array, "b s d"], masking: Masking) -> Float[Array, "b r t"]:
        """Predicts the removed tokens only, in the order of `ids_removed`: -> [b, r, t].

        The numbers are those of `__call__` for these tokens. Three shortcuts save work. Attention
        does not depend on the order of its keys, so tokens need not return to their positions. The
        last block computes only the queries of the removed tokens. Before the first block a removed
        token depends on its position alone, so its query, key and value are computed once per
        position instead of once per patch.
        """
        positions = self._positions()
        x = self.embed(latent)
        kept = jnp.concatenate([x[:, :1], x[:, 1:] + positions[masking.ids_keep]], axis=1)
        removed = self.mask_token + positions[masking.ids_removed]
        x = jnp.concatenate([kept, removed], axis=1)
        table = self.mask_token + positions
        first = self.block[0]
        one_hot = jax.nn.one_hot(masking.ids_removed, table.shape[1], dtype=table.dtype)

        def pick(rows: jax.Array) -> jax.Array:
            # The gradient of a gather would be a slow scatter.
            return product("brl,le->bre", one_hot, rows[0], self.dtype)

        queries = pick(first.queries(table))
        keys_values = jnp.concatenate(
            [first.keys_values(kept), pick(first.keys_values(table))], axis=1
        )
        if len(self.block) == 1:
            x = first.attend(removed, queries, keys_values)
        else:
            queries = jnp.concatenate([first.queries(kept), queries], axis=1)
            x = first.attend(x, queries, keys_values)
            for block in self.block[1:-1]:
                x = block(x)
            x = self.block[-1](x, slice(latent.shape[1], None))
        return self.pred(self.norm(x))

    def _positions(self) -> jax.Array:
        return jnp.asarray(np.asarray(sincos_2d(self.width, self.grid)))


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder; parameters {"encoder": ..., "decoder": ...}.

    Attributes:
      patch_size, token_size: sides in pixels of the images and of a token.
      width, depth, heads, mlp_ratio: sizes of the encoder.
      decoder_width, decoder_depth, decoder_heads: sizes of the decoder.
      target_dim: t, channels of a token's target.
      remat: store only the input of each block for the gradient and recompute the rest.
      dtype: type of the operands of the products.
    """

    patch_size: int = 32
    token_size: int = 4
    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: int = 4
    decoder_width: int = 512
    decoder_depth: int = 1
    decoder_heads: int = 16
    target_dim: int = 9
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(
            self.token_size,
            self.width,
            self.depth,
            self.heads,
            self.mlp_ratio,
            remat=self.remat,
            dtype=self.dtype,
        )
        side = self.patch_size // self.token_size
        self.decoder = Decoder(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_heads,
            self.mlp_ratio,
            self.target_dim,
            (side, side),
            self.dtype,
        )

    def __call__(
        self, images: Float[AnyArray, "b h w c"], noise: Float[AnyArray, "b l"], mask_ratio: float
    ) -> dict[str, Array]:
        """Predicts every token of every patch.

        Args:
          images: float32 [b, h, w, c], normalised to (x - 0.5) / 0.5.
          noise: [b, l], see `mask_noise`.
          mask_ratio: fraction of removed tokens, a Python number.

        Returns:
          `latent` [b, 1 + k, d] (CLS first, kept tokens in the order of their noise), `pred`
          [b, l, t], `mask` float32 [b, l] (1 = removed) and `ids_restore` int32 [b, l].
        """
        masking = random_masking(noise, mask_ratio)
        latent = self.encoder(images, masking.ids_keep)
        return {
            "latent": latent,
            "pred": self.decoder(latent, masking),
            "mask": masking.mask,
            "ids_restore": masking.ids_restore,
        }

    def removed(
        self, images: Float[AnyArray, "b h w c"], noise: Float[AnyArray, "b l"], mask_ratio: float
    ) -> tuple[Float[Array, "b r t"], Int[Array, "b r"]]:
        """Predicts the removed tokens only.

        Args:
          images, noise, mask_ratio: as for `__call__`.

        Returns:
          `pred` [b, r, t] and `ids_removed` int32 [b, r].
        """
        masking = random_masking(noise, mask_ratio)
        latent = self.encoder(images, masking.ids_keep)
        if self.remat:
            pred = recomputed(self.decoder, "removed", latent, masking)
        else:
            pred = self.decoder.removed(latent, masking)
        return pred, masking.ids_removed
