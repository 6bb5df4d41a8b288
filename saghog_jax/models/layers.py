"""Building blocks of the encoder and the decoder: the one product, dense layer, attention, block.

Axis letters: b patches, l tokens, d width, n heads, h channels of a head, q query tokens,
k key tokens.
Every matrix product of the models goes through `product`, so that its precision is set in one
place; everything between products (residual stream, LayerNorm, softmax, GELU) is float32.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

LAYER_NORM_EPSILON = 1e-5


def product(equation: str, x: jax.Array, y: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`einsum` of two float32 arrays with operands in `dtype` and a float32 result.

    With `bfloat16` the operands, and in the backward pass the cotangent, are rounded to it, while
    sums are float32: on accelerators and on CPUs with bfloat16 instructions that is the fast form.
    Each index of an operand must occur in the other operand or in the result.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return jnp.einsum(equation, x, y)
    return _narrow_product(equation, jnp.dtype(dtype), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow_product(equation: str, dtype: DTypeLike, x: jax.Array, y: jax.Array) -> jax.Array:
    return _narrow_product_fwd(equation, dtype, x, y)[0]


def _narrow_product_fwd(
    equation: str, dtype: DTypeLike, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32), (x, y)


def _narrow_product_bwd(
    equation: str, dtype: DTypeLike, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, y = saved
    operands, result = equation.split("->")
    first, second = operands.split(",")
    cotangent = cotangent.astype(dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        einsum(f"{result},{second}->{first}", cotangent, y),
        einsum(f"{first},{result}->{second}", x, cotangent),
    )


_narrow_product.defvjp(_narrow_product_fwd, _narrow_product_bwd)


class Dense(nn.Module):
    """Affine map of the last axis; xavier-uniform kernel and zero bias as in the published code.

    Attributes:
      features: channels of the result.
      dtype: of the operands of the product; parameters and result are float32.
      bias_init: initialiser of the bias.
      use_bias: False for a linear map.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., i] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product("...i,io->...o" if x.ndim != 3 else "bli,io->blo", x, kernel, self.dtype)
        return y + self.param("bias", self.bias_init, (self.features,)) if self.use_bias else y


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    """LayerNorm of the published code (epsilon 1e-5), with the two-pass variance."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection (reference: section 3)."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, queries: slice = slice(None)) -> jax.Array:
        """Attends from some tokens to all.

        Args:
          x: [b, l, d] tokens.
          queries: the tokens whose result is wanted; keys and values come from all of `x`.

        Returns:
          [b, q, d].
        """
        width = x.shape[-1]
        kernel = self.param("qkv_kernel", nn.initializers.xavier_uniform(), (width, 3 * width))
        bias = self.param("qkv_bias", nn.initializers.zeros, (3 * width,))

        def project(tokens: jax.Array, columns: slice) -> list[jax.Array]:
            y = product("bld,de->ble", tokens, kernel[:, columns], self.dtype) + bias[columns]
            return [
                part.reshape(*part.shape[:2], self.heads, width // self.heads).swapaxes(1, 2)
                for part in jnp.split(y, y.shape[-1] // width, axis=-1)
            ]

        if queries == slice(None):
            q, k, v = project(x, slice(0, 3 * width))
        else:
            (q,) = project(x[:, queries], slice(0, width))
            k, v = project(x, slice(width, 3 * width))
        q = q * (width // self.heads) ** -0.5
        # Heads before tokens: on CPUs both gradients are then products XLA has kernels for, also
        # of bfloat16 operands.
        weights = nn.softmax(product("bnqh,bnkh->bnqk", q, k, self.dtype))
        y = product("bnqk,bnkh->bnqh", weights, v, self.dtype).swapaxes(1, 2)
        return Dense(width, self.dtype, name="proj")(y.reshape(*y.shape[:2], width))


class Block(nn.Module):
    """Pre-norm transformer block with GELU (erf form)."""

    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, queries: slice = slice(None)) -> jax.Array:
        """[b, l, d] -> [b, q, d]: the block's result for the tokens `queries` alone.

        With fewer queries than tokens the result is exactly the slice of the full one: queries,
        projection and MLP of the other tokens are not computed.
        """
        width = x.shape[-1]
        y = Attention(self.heads, self.dtype, name="attention")(layer_norm("norm1")(x), queries)
        x = x[:, queries] + y
        y = Dense(self.mlp_ratio * width, self.dtype, name="fc1")(layer_norm("norm2")(x))
        return x + Dense(width, self.dtype, name="fc2")(nn.gelu(y, approximate=False))
