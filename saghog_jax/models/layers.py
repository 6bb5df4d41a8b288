"""Products, dense layer, GELU, LayerNorm and dropout of the encoder and the decoder.

Axis letters: b patches, l tokens, d width, i and o channels of input and output.
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

from saghog_jax.models.arrays import AnyArray

LAYER_NORM_EPSILON = 1e-5


def precision_of(dtype: DTypeLike) -> jax.lax.Precision:
    """The precision of products with operands in `dtype`.

    Without it products of float32 operands are TF32 on NVIDIA and bfloat16 on TPU.
    """
    narrow = jnp.finfo(dtype).bits < 32
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def _einsum(equation: str, x: AnyArray, y: AnyArray) -> jax.Array:
    precision = precision_of(x.dtype)
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)


def product(
    equation: str, x: Float[AnyArray, "..."], y: Float[AnyArray, "..."], dtype: DTypeLike
) -> Float[Array, "..."]:
    """`einsum` of two float32 arrays with operands in `dtype` and a float32 result.

    With `bfloat16` the operands, and the cotangent in the backward pass, are rounded to bfloat16;
    sums are float32. This is fast on accelerators and on CPUs with bfloat16 instructions.
    With `float32` the products are those of float32 on every device (`precision_of`).
    Each index of an operand must occur in the other operand or in the result.
    """
    return _product(equation, jnp.dtype(dtype), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(equation: str, dtype: DTypeLike, x: AnyArray, y: AnyArray) -> AnyArray:
    return _product_fwd(equation, dtype, x, y)[0]


def _product_fwd(
    equation: str, dtype: DTypeLike, x: AnyArray, y: AnyArray
) -> tuple[AnyArray, tuple[AnyArray, AnyArray]]:
    x, y = x.astype(dtype), y.astype(dtype)
    return _einsum(equation, x, y), (x, y)


def _product_bwd(
    equation: str, dtype: DTypeLike, saved: tuple[AnyArray, AnyArray], cotangent: AnyArray
) -> tuple[AnyArray, AnyArray]:
    x, y = saved
    operands, result = equation.split("->")
    first, second = operands.split(",")
    cotangent = cotangent.astype(dtype)
    return (
        _einsum(f"{result},{second}->{first}", cotangent, y),
        _einsum(f"{first},{result}->{second}", x, cotangent),
    )


_product.defvjp(_product_fwd, _product_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def affine(
    dtype: DTypeLike,
    x: Float[AnyArray, "*rows i"],
    kernel: Float[AnyArray, "i o"],
    bias: Float[AnyArray, " o"],
) -> Float[Array, "*rows o"]:
    """x kernel + bias: [..., i] -> [..., o], operands in `dtype` as in `product`."""
    return _affine_fwd(dtype, x, kernel, bias)[0]


def _affine_fwd(
    dtype: DTypeLike, x: AnyArray, kernel: AnyArray, bias: AnyArray
) -> tuple[AnyArray, tuple[AnyArray, AnyArray]]:
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    y = _einsum("...i,io->...o", x, kernel)
    return y + bias, (x, kernel)


def _affine_bwd(
    dtype: DTypeLike, saved: tuple[AnyArray, AnyArray], cotangent: AnyArray
) -> tuple[AnyArray, AnyArray, AnyArray]:
    x, kernel = saved
    cotangent = cotangent.astype(dtype)
    to_x = _einsum("...o,io->...i", cotangent, kernel)
    # One operand must be transposed in memory: choose the narrower one.
    if kernel.shape[0] <= kernel.shape[1]:
        to_kernel = _einsum("...i,...o->io", x, cotangent)
    else:
        to_kernel = jax.lax.optimization_barrier(_einsum("...o,...i->oi", cotangent, x)).T
    axes = tuple(range(cotangent.ndim - 1))
    return to_x, to_kernel, jnp.sum(cotangent, axes, dtype=jnp.float32)


affine.defvjp(_affine_fwd, _affine_bwd)


@jax.custom_vjp
def gelu(x: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """GELU: x times the normal distribution function of x (with erf, as in PyTorch).

    The forward and the backward pass each read memory once: the derivative is computed from x
    alone, while automatic differentiation would store intermediate values.
    """
    return x * _normal_cdf(x)


def _gelu_fwd(x: AnyArray) -> tuple[AnyArray, AnyArray]:
    return x * _normal_cdf(x), x


def _gelu_bwd(x: AnyArray, cotangent: AnyArray) -> tuple[AnyArray]:
    # Without the barrier the compiler shares erf between both passes and stores its result.
    x, cotangent = jax.lax.optimization_barrier((x, cotangent))
    density = jnp.exp(-0.5 * x * x) * np.float32(1 / math.sqrt(2 * math.pi))
    return (cotangent * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_fwd, _gelu_bwd)


def _normal_cdf(x: AnyArray) -> AnyArray:
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(math.sqrt(0.5)))


class Dense(nn.Module):
    """Affine map of the last axis; xavier-uniform kernel and zero bias as in the published code.

    Attributes:
      features: channels of the result.
      dtype: type of the operands of the product; parameters and result are float32.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      use_bias: False for a linear map.
      copies: channels that each input stands for: the kernel has `copies` rows for an input, and
        their sum is the row of the product.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros
    use_bias: bool = True
    copies: int = 1

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b *l i"]) -> Float[Array, "b *l o"]:
        """[b, i] or [b, l, i] -> [b, features] or [b, l, features]."""
        shape = (self.copies * x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.copies > 1:
            kernel = jnp.sum(kernel.reshape(-1, self.copies, self.features), axis=1)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            return affine(self.dtype, x, kernel, bias)
        return product("bi,io->bo" if x.ndim == 2 else "bli,io->blo", x, kernel, self.dtype)


@jax.custom_vjp
def normalize(
    x: Float[AnyArray, "*rows d"], scale: Float[AnyArray, " d"], bias: Float[AnyArray, " d"]
) -> Float[Array, "*rows d"]:
    """LayerNorm of the last axis of x [..., d], with the two-pass variance; float32.

    The explicit gradient takes fewer passes over memory than automatic differentiation of the
    two passes.
    """
    return _normalize_fwd(x, scale, bias)[0]


def _normalize_fwd(x: AnyArray, scale: AnyArray, bias: AnyArray) -> tuple[AnyArray, tuple]:
    mean = jnp.mean(x, axis=-1)
    centred = x - mean[..., None]
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1) + LAYER_NORM_EPSILON)
    return centred * inverse[..., None] * scale + bias, (x, mean, inverse, scale)


def _normalize_bwd(saved: tuple, cotangent: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
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
    def __call__(self, x: Float[AnyArray, "*rows d"]) -> Float[Array, "*rows d"]:
        """[..., d] -> [..., d]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return normalize(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


def apply_dropout(
    drop: nn.Dropout,
    x: Float[AnyArray, " b *row"],
    train: bool,
    keys: Key[Array, " b"] | None = None,
) -> Float[Array, " b *row"]:
    """Dropout of rows [b, ...], with `train=True` only.

    Args:
      keys: random keys [b], one per row: a row loses the same values in every batch. Without keys
        the rng stream `dropout` is used.
    """
    if keys is None or not train:
        return drop(x, deterministic=not train)
    return jax.vmap(lambda row, key: drop(row, deterministic=False, rng=key))(x, keys)
