"""Products with narrow operands, and blocks for some of the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saghog_jax.models.layers import Block, Dense, product


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)])
def test_bfloat16_product_rounds_operands_and_cotangent_only(shape):
    x, y = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (6, 5))
    equation = "bi,io->bo" if len(shape) == 2 else "bli,io->blo"
    cotangent = jax.random.normal(jax.random.key(2), (*shape[:-1], 5))
    out, pull = jax.vjp(lambda x, y: product(equation, x, y, jnp.bfloat16), x, y)
    gradients = pull(cotangent)
    # Operands of 8 bits have products of 16: float32 sums of them are exact but for the last bit.
    x, y, c = (np.asarray(a.astype(jnp.bfloat16)).astype(np.float64) for a in (x, y, cotangent))
    flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
    for ours, expected in [
        (out, x @ y),
        (gradients[0], c @ y.T),
        (gradients[1], flat(x).T @ flat(c)),
    ]:
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


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
