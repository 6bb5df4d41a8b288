"""Building blocks of the encoder and the decoder: product, dense layer, attention, block.

Axis letters: b patches, l tokens, d width, n heads, h channels of a head, q query tokens,
k key tokens.
Every matrix product of the models goes through `product` or `affine`, which set its precision;
everything between products (residual stream, LayerNorm, softmax, GELU) is float32.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

LAYER_NORM_EPSILON = 1e-5


def product(
    equation: str, x: Float[Array, "..."], y: Float[Array, "..."], dtype: DTypeLike
) -> Float[Array, "..."]:
    """`einsum` of two float32 arrays with operands in `dtype` and a float32 result.

    With `bfloat16` the operands, and the cotangent in the backward pass, are rounded to bfloat16;
    sums are float32. This is fast on accelerators and on CPUs with bfloat16 instructions.
    Each index of an operand must occur in the other operand or in the result.
    """
    return _product(equation, jnp.dtype(dtype), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(equation: str, dtype: DTypeLike, x: jax.Array, y: jax.Array) -> jax.Array:
    return _product_fwd(equation, dtype, x, y)[0]


def _product_fwd(
    equation: str, dtype: DTypeLike, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32), (x, y)


def _product_bwd(
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


_product.defvjp(_product_fwd, _product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def affine(
    dtype: DTypeLike,
    x: Float[Array, "*rows i"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"],
) -> Float[Array, "*rows o"]:
    """x kernel + bias: [..., i] -> [..., o], operands in `dtype` as in `product`."""
    return _affine_fwd(dtype, x, kernel, bias)[0]


def _affine_fwd(
    dtype: DTypeLike, x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    y = jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=jnp.float32)
    return y + bias, (x, kernel)


def _affine_bwd(
    dtype: DTypeLike, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = saved
    cotangent = cotangent.astype(dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_x = einsum("...o,io->...i", cotangent, kernel)
    # One operand must be transposed in memory: choose the narrower one.
    if kernel.shape[0] <= kernel.shape[1]:
        to_kernel = einsum("...i,...o->io", x, cotangent)
    else:
        to_kernel = jax.lax.optimization_barrier(einsum("...o,...i->oi", cotangent, x)).T
    axes = tuple(range(cotangent.ndim - 1))
    return to_x, to_kernel, jnp.sum(cotangent, axes, dtype=jnp.float32)


affine.defvjp(_affine_fwd, _affine_bwd)


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU: x times the normal distribution function of x (with erf, as in PyTorch).

    The forward and the backward pass each read memory once: the derivative is computed from x
    alone, while automatic differentiation would store intermediate values.
    """
    return x * _normal_cdf(x)


def _gelu_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x * _normal_cdf(x), x


def _gelu_bwd(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    # Without the barrier the compiler shares erf between both passes and stores its result.
    x, cotangent = jax.lax.optimization_barrier((x, cotangent))
    density = jnp.exp(-0.5 * x * x) * np.float32(1 / math.sqrt(2 * math.pi))
    return (cotangent * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(math.sqrt(0.5)))


class Dense(nn.Module):
    """Affine map of the last axis; xavier-uniform kernel and zero bias as in the published code.

    Attributes:
      features: channels of the result.
      dtype: type of the operands of the product; parameters and result are float32.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      use_bias: False for a linear map.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b *l i"]) -> Float[Array, "b *l o"]:
        """[b, i] or [b, l, i] -> [b, features] or [b, l, features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            return affine(self.dtype, x, kernel, bias)
        return product("bi,io->bo" if x.ndim == 2 else "bli,io->blo", x, kernel, self.dtype)


@jax.custom_vjp
def normalize(
    x: Float[Array, "*rows d"], scale: Float[Array, " d"], bias: Float[Array, " d"]
) -> Float[Array, "*rows d"]:
    """LayerNorm of the last axis of x [..., d], with the two-pass variance; float32.

    The explicit gradient takes fewer passes over memory than automatic differentiation of the
    two passes.
    """
    return _normalize_fwd(x, scale, bias)[0]


def _normalize_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    mean = jnp.mean(x, axis=-1)
    centred = x - mean[..., None]
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1) + LAYER_NORM_EPSILON)
    return centred * inverse[..., None] * scale + bias, (x, mean, inverse, scale)


def _normalize_bwd(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale = saved
    normed = (x - mean[..., None]) * inverse[..., None]
    inner = cotangent * scale
    along, mean_inner = jnp.mean(inner * normed, axis=-1), jnp.mean(inner, axis=-1)
    to_x = inverse[..., None] * (inner - mean_inner[..., None] - normed * along[..., None])
    rows = tuple(range(x.ndim - 1))
    return to_x, jnp.sum(cotangent * normed, rows), jnp.sum(cotangent, rows)


normalize.defvjp(_normalize_fwd, _normalize_bwd)


class LayerNorm(nn.Module):
    """LayerNorm of the published code (epsilon 1e-5)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """[..., d] -> [..., d]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return normalize(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


def apply_dropout(
    drop: nn.Dropout, x: Float[Array, " b *row"], train: bool, keys: Key[Array, " b"] | None = None
) -> Float[Array, " b *row"]:
    """Dropout of rows [b, ...], with `train=True` only.

    Args:
      keys: random keys [b], one per row: a row loses the same values in every batch. Without keys
        the rng stream `dropout` is used.
    """
    if keys is None or not train:
        return drop(x, deterministic=not train)
    return jax.vmap(lambda row, key: drop(row, deterministic=False, rng=key))(x, keys)


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
