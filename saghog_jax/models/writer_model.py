"""The writer model: an encoder and NetRVLAD on its descriptors (paper, section 3).

Axis letters: b patches, l tokens, d width of a descriptor, v clusters; h w c image axes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.models.arrays import AnyArray
from saghog_jax.models.layers import Dense, apply_dropout
from saghog_jax.models.netrvlad import NetRVLAD, generalized_max_pool
from saghog_jax.models.vit import patchify

DESCRIPTORS = ("cls", "gmp", "foreground")
GMP_RIDGE = 1000.0  # Initial value of the learned ridge, as in the published code.


def token_ink(binary: Float[AnyArray, "b h w 1"], token_size: int) -> Float[Array, "b l"]:
    """Fraction of ink pixels in each token: binary [b, h, w, 1] (1 = paper) -> [b, l]."""
    return 1 - jnp.mean(patchify(binary, token_size), axis=-1)


class WriterModel(nn.Module):
    """Encoder, choice of descriptor, NetRVLAD; parameters {"encoder": ..., "netrvlad": ...}.

    Attributes:
      encoder: module with `features(images, train, dropout_keys)` -> [b, d]; descriptors other
        than `cls` also need `tokens` with the same arguments, -> [b, 1 + l, d].
      num_clusters, normalized: see `NetRVLAD`.
      descriptor: `cls` (the CLS token), `gmp` (generalised max pooling of all tokens with a learned
        ridge) or `foreground` (every token with enough ink is a descriptor).
      min_token_ink: smallest fraction of ink in a foreground token. A patch without foreground
        tokens has no descriptor: its assignment is zero.
      embed_dim: width of a linear map before NetRVLAD; 0 for none.
      dropout: dropout rate before the linear map.
      dtype: type of the operands of the products.
    """

    encoder: nn.Module
    num_clusters: int = 100
    normalized: bool = False
    descriptor: str = "cls"
    min_token_ink: float = 0.05
    embed_dim: int = 0
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_choice("descriptor", self.descriptor, DESCRIPTORS)
        self.netrvlad = NetRVLAD(self.num_clusters, self.normalized, dtype=self.dtype)
        if self.descriptor == "gmp":
            self.ridge = self.param("ridge", nn.initializers.constant(GMP_RIDGE), (1,))
        if self.embed_dim:
            self.drop = nn.Dropout(self.dropout)
            self.embed = Dense(self.embed_dim, self.dtype, use_bias=False)

    def encode(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b *l d"]:
        """Descriptors of patches, before NetRVLAD.

        Args:
          images: float32 [b, h, w, c], normalised to (x - 0.5) / 0.5.
          train: apply dropout (rng stream `dropout`), and use the statistics of the batch if the
            encoder has batch normalisation (mutable collection `batch_stats`).
          dropout_keys: random keys [b], one per patch, in place of the rng stream.

        Returns:
          [b, d]; for `foreground` [b, l, d], all tokens except CLS: `token_ink` selects the
          foreground tokens.
        """
        if self.descriptor == "cls":
            x = self.encoder.features(images, train, dropout_keys)
        elif self.descriptor == "gmp":
            x = generalized_max_pool(self.encoder.tokens(images, train, dropout_keys), self.ridge)
        else:
            x = self.encoder.tokens(images, train, dropout_keys)[:, 1:]
        if self.embed_dim:
            keys = dropout_keys
            if keys is not None:  # The encoder has already used these keys.
                keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
            x = self.embed(apply_dropout(self.drop, x, train, keys))
        return x

    def __call__(
        self,
        images: Float[AnyArray, "b h w c"],
        train: bool = False,
        binary: Float[AnyArray, "b h w 1"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b *l d"], Float[Array, "b *l v"]]:
        """Descriptors and assignments, the inputs of `cosine_gram` and `page_sum`.

        Args:
          images, train, dropout_keys: as for `encode`.
          binary: float32 [b, h, w, 1], 1 = paper; needed for `foreground` only.

        Returns:
          descriptors [b, d] and assignments [b, v]; for `foreground` [b, l, d] and [b, l, v].

        Raises:
          ValueError: `foreground` without `binary`.
        """
        x = self.encode(images, train, dropout_keys)
        if self.descriptor != "foreground":
            return x, self.netrvlad(x)
        if binary is None:
            raise ValueError("descriptor 'foreground' needs the binary patches")
        ink = token_ink(binary, self.encoder.token_size)
        return x, self.netrvlad(x, (ink >= self.min_token_ink).astype(jnp.float32))
