"""Self-attention and the transformer block of the encoder and the decoder.

Axis letters: b patches, l tokens, d width, n heads, h channels of a head, q query tokens,
k key tokens.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from saghog_jax.models.layers import Dense, LayerNorm, affine, gelu, product


class Attention(nn.Module):
    """Multi-head self-attention.

    The kernels of queries, keys and values are one parameter, as in the published code. They are
    one product where all three are needed; tokens that serve only as keys need no queries.
    """

    heads: int
    width: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.width, 3 * self.width)
        self.qkv_kernel = self.param("qkv_kernel", nn.initializers.xavier_uniform(), shape)
        self.qkv_bias = self.param("qkv_bias", nn.initializers.zeros, shape[1:])
        self.proj = Dense(self.width, self.dtype)

    def queries(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """[b, q, d] -> [b, q, d]."""
        return self._project(x, slice(0, self.width))

    def keys_values(self, x: Float[Array, "b k d"]) -> Float[Array, "b k 2*d"]:
        """[b, k, d] -> [b, k, 2 d]."""
        return self._project(x, slice(self.width, None))

    def queries_keys_values(
        self, x: Float[Array, "b l d"]
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l 2*d"]]:
        """[b, l, d] -> [b, l, d] and [b, l, 2 d]."""
        y = self._project(x, slice(None))
        return y[..., : self.width], y[..., self.width :]

    def _project(self, x: jax.Array, columns: slice) -> jax.Array:
        return affine(self.dtype, x, self.qkv_kernel[:, columns], self.qkv_bias[columns])

    def __call__(
        self, queries: Float[Array, "b q d"], keys_values: Float[Array, "b k 2*d"]
    ) -> Float[Array, "b q d"]:
        """[b, q, d] and [b, k, 2 d] -> [b, q, d]."""
        keys, values = jnp.split(keys_values, 2, axis=-1)
        # Heads before tokens: XLA then has CPU kernels for the products of both gradients, also
        # with bfloat16 operands.
        q, k, v = (
            t.reshape(*t.shape[:2], self.heads, -1).swapaxes(1, 2) for t in (queries, keys, values)
        )
        q = q * q.shape[-1] ** -0.5
        weights = nn.softmax(product("bnqh,bnkh->bnqk", q, k, self.dtype))
        y = product("bnqk,bnkh->bnqh", weights, v, self.dtype).swapaxes(1, 2)
        return self.proj(y.reshape(queries.shape))


class Block(nn.Module):
    """Pre-norm transformer block with GELU (erf form)."""

    heads: int
    width: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norm1 = LayerNorm()
        self.attention = Attention(self.heads, self.width, self.dtype)
        self.norm2 = LayerNorm()
        self.fc1 = Dense(self.mlp_ratio * self.width, self.dtype)
        self.fc2 = Dense(self.width, self.dtype)

    def __call__(
        self, x: Float[Array, "b l d"], queries: slice = slice(None)
    ) -> Float[Array, "b q d"]:
        """Applies the block to the tokens `queries` of [b, l, d] -> [b, q, d].

        The result is exactly a slice of the full result; queries, projection and MLP of the other
        tokens are not computed.
        """
        if queries == slice(None):
            return self.attend(x, *self.attention.queries_keys_values(self.norm1(x)))
        return self.attend(x[:, queries], self.queries(x[:, queries]), self.keys_values(x))

    def queries(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        """Queries [b, q, d] of the tokens `x` [b, q, d]."""
        return self.attention.queries(self.norm1(x))

    def keys_values(self, x: Float[Array, "b k d"]) -> Float[Array, "b k 2*d"]:
        """Keys and values [b, k, 2 d] of the tokens `x` [b, k, d]."""
        return self.attention.keys_values(self.norm1(x))

    def attend(
        self,
        x: Float[Array, "b q d"],
        queries: Float[Array, "b q d"],
        keys_values: Float[Array, "b k 2*d"],
    ) -> Float[Array, "b q d"]:
        """Attention, MLP and residuals of the block for the tokens `x` [b, q, d]."""
        x = x + self.attention(queries, keys_values)
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


def recomputed(
    module: nn.Module, method: str, x: Float[Array, "b ..."], *fixed: object
) -> Float[Array, "b i j"]:
    """Applies a method of a module and recomputes it in the backward pass.

    `nn.remat` has the same purpose, but on CPUs XLA removes its barriers and merges both
    computations, which saves no memory. Here the second computation depends on the cotangent, so
    that it cannot run earlier.

    Args:
      module: bound; it has parameters only, no other collections and no random streams.
      method: name of the method.
      x: float32 [b, ...], differentiated with the parameters.
      fixed: further arguments, without gradient.

    Returns:
      the method's result, an array of three axes.
    """
    if module.is_initializing():
        return getattr(module, method)(x, *fixed)
    unbound, variables = module.unbind()

    def plain(variables: dict, x: jax.Array) -> jax.Array:
        return unbound.apply(variables, x, *fixed, method=method)

    def forward(variables: dict, x: jax.Array) -> tuple[jax.Array, tuple[dict, jax.Array]]:
        return plain(variables, x), (variables, x)

    def backward(saved: tuple[dict, jax.Array], cotangent: jax.Array) -> tuple[dict, jax.Array]:
        variables, x = saved
        # 0 times a number may be NaN, so XLA cannot replace it by 0 and waits for the cotangent.
        # Biases depend on it too: XLA broadcasts them to the size of the result and would store
        # these arrays in the first computation.
        zero = 0 * cotangent[0, 0, 0]
        x = x + zero
        variables = jax.tree.map(lambda leaf: leaf + zero if leaf.ndim < 2 else leaf, variables)
        return jax.vjp(plain, variables, x)[1](cotangent)

    call = jax.custom_vjp(plain)
    call.defvjp(forward, backward)
    return call(variables, x)
