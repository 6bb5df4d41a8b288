"""Products with narrow operands, and blocks for some of the tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saghog_jax.models.blocks import Block
from saghog_jax.models.layers import Dense, affine, gelu, normalize, product


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)])
def test_bfloat16_product_rounds_operands_and_cotangent_only(shape):
    x, y = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (6, 5))
    equation = "bi,io->bo" if len(shape) == 2 else "bli,io->blo"
    cotangent = jax.random.normal(jax.random.key(2), (*shape[:-1], 5))
    out, pull = jax.vjp(lambda x, y: product(equation, x, y, jnp.bfloat16), x, y)
    gradients = pull(cotangent)
    # Products of 8-bit operands have 16 bits: their float32 sums are exact except for the last bit.
    x, y, c = (np.asarray(a.astype(jnp.bfloat16)).astype(np.float64) for a in (x, y, cotangent))
    flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
    for ours, expected in [
        (out, x @ y),
        (gradients[0], c @ y.T),
        (gradients[1], flat(x).T @ flat(c)),
    ]:
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 5), (5, 6)])
def test_affine_rounds_as_product_does(sizes):
    # The gradient of the kernel has two forms, depending on the longer side.
    x = jax.random.normal(jax.random.key(0), (2, 3, sizes[0]))
    kernel = jax.random.normal(jax.random.key(1), sizes)
    bias, cotangent = jnp.arange(sizes[1], dtype=jnp.float32), jnp.ones((2, 3, sizes[1])) / 3

    def plain(x, kernel, bias):
        return product("bli,io->blo", x, kernel, jnp.bfloat16) + bias

    expected, pull_expected = jax.vjp(plain, x, kernel, bias)
    out, pull = jax.vjp(lambda *args: affine(jnp.bfloat16, *args), x, kernel, bias)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    to_x, to_kernel, to_bias = pull(cotangent)
    for ours, theirs in zip((to_x, to_kernel), pull_expected(cotangent), strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # The gradient of the bias is the sum of the same rounded numbers that enter the products.
    rounded = np.asarray(cotangent.astype(jnp.bfloat16), np.float64).sum((0, 1))
    np.testing.assert_allclose(to_bias, rounded, rtol=1e-6)


def test_gelu_and_its_gradient_are_those_of_the_normal_distribution():
    x = np.linspace(-9, 9, 181).astype(np.float32)
    exact = [(1 + math.erf(v / math.sqrt(2))) / 2 for v in x.astype(np.float64)]
    density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    out, pull = jax.vjp(gelu, jnp.asarray(x))
    np.testing.assert_allclose(out, x * exact, rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(out))[0], exact + x * density, atol=1e-6)


def test_layer_norm_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    # The mean is large against the deviation: a one-pass variance would lose it.
    x = 100 + 0.1 * jax.random.normal(keys[0], (2, 3, 64))
    scale, bias = 1 + jax.random.normal(keys[1], (2, 64))
    cotangent = jax.random.normal(keys[3], x.shape)

    def plain(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
        return centred / deviation * scale + bias

    out, pull = jax.vjp(normalize, x, scale, bias)
    exact = [np.asarray(a, np.float64) for a in (x, scale, bias)]
    np.testing.assert_allclose(out, plain(*exact), atol=2e-3)
    with jax.enable_x64(True):
        wide = [jnp.asarray(a) for a in exact]
        inverse = lambda x: jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)  # noqa: E731
        _, pull_wide = jax.vjp(
            lambda x, s, b: (x - x.mean(-1, keepdims=True)) * inverse(x) * s + b, *wide
        )
        expected = [np.asarray(g) for g in pull_wide(jnp.asarray(np.asarray(cotangent, float)))]
    for ours, theirs in zip(pull(cotangent), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


def test_attention_gradients_with_bfloat16_run_on_a_cpu():
    block = Block(2, 8, 4, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = block.init(jax.random.key(1), x)
    gradient = jax.jit(jax.grad(lambda p, x: block.apply(p, x).sum()))(params, x)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("queries", [slice(0, 1), slice(2, None)])
def test_a_block_for_some_tokens_is_a_slice_of_the_whole(queries):
    block = Block(2, 8)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = block.init(jax.random.key(1), x)

    def run(select):
        def objective(p, x):
            y = select(p, x)
            return jnp.sum(jnp.sin(3 * y)), y

        return jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, x)

    (_, whole), expected = run(lambda p, x: block.apply(p, x)[:, queries])
    (_, part), gradients = run(lambda p, x: block.apply(p, x, queries))
    np.testing.assert_allclose(part, whole, atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)


def test_dense_without_bias():
    x = jnp.ones((2, 3))
    assert set(Dense(4, use_bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}
    assert set(Dense(4).init(jax.random.key(0), x)["params"]) == {"kernel", "bias"}
