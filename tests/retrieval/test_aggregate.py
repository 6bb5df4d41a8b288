"""Page descriptors against the published figures, and the poolings against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS
from sklearn.preprocessing import normalize

from saghog_jax.retrieval import aggregate

GOLDEN = np.load(TESTS / "golden" / "page.npz")
# float32 sums of up to 57 patches in another order.
TOLERANCE = {"atol": 1e-6, "rtol": 0}


@pytest.mark.parametrize(
    ("key", "mode", "alpha"),
    [
        ("pool_out", "sum", 0.4),
        ("pool_out_l2only", "sum", 1.0),
        ("pool_alpha05", "sum", 0.5),
        ("pool_max04", "max", 0.4),
        ("pool_lse04", "lse", 0.4),
    ],
)
def test_published_page_descriptors(key, mode, alpha):
    ours = aggregate.page_descriptors(GOLDEN["pool_in"], GOLDEN["pool_lens"], mode, alpha)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, GOLDEN[key], **TOLERANCE)


def test_published_page_by_itself():
    first, second = GOLDEN["pool_lens"][:2]
    ours = aggregate.page_descriptors(GOLDEN["pool_in"][first : first + second], [second])
    np.testing.assert_allclose(ours, GOLDEN["pool_out_single"], **TOLERANCE)


def test_page_without_ink_stays_zero():
    zero = aggregate.page_descriptors(np.zeros((3, 48), np.float32), [3])
    np.testing.assert_array_equal(zero, GOLDEN["pool_zero_page"])
    none = aggregate.page_descriptors(GOLDEN["pool_in"][:5], [0, 5, 0])
    assert np.linalg.norm(none, axis=1) == pytest.approx([0, 1, 0])


def test_mean_is_the_sum_after_normalising():
    x, lengths = GOLDEN["pool_in"], GOLDEN["pool_lens"]
    mean, total = (aggregate.page_descriptors(x, lengths, mode) for mode in ("mean", "sum"))
    np.testing.assert_allclose(mean, total, **TOLERANCE)
    assert not np.allclose(aggregate.pool(x, "mean"), aggregate.pool(x, "sum"))


@pytest.mark.parametrize("b", [4, 90])
def test_generalised_max_pooling_is_ridge_regression(b):
    x = np.random.default_rng(b).standard_normal((b, 20))
    ridge = 0.3
    pooled = aggregate.pool(x, "gmp", ridge)
    # The minimiser of |X v - 1|^2 + r |v|^2: its gradient vanishes.
    gradient = x.T @ (x @ pooled.astype(np.float64) - 1) + ridge * pooled
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert not np.allclose(pooled, aggregate.pool(x, "gmp", 3.0), atol=1e-3)


def test_lse_of_large_values_does_not_overflow():
    assert aggregate.pool(np.full((2, 1), 1e4), "lse") == pytest.approx(1e4 + np.log(2))


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 6), (2, 1)])
def test_l2_equals_scikit_learn_and_keeps_zero_rows(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[0] = 0
    flat = normalize(x.reshape(-1, shape[-1]))
    np.testing.assert_allclose(aggregate.l2_normalize(x).reshape(flat.shape), flat, atol=1e-7)


def test_numpy_and_jax_agree_under_jit():
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    both = jax.jit(lambda v: aggregate.l2_normalize(aggregate.power_norm(v, 0.4)))(jnp.asarray(x))
    assert isinstance(both, jax.Array)
    assert both.dtype == jnp.float32
    ours = aggregate.l2_normalize(aggregate.power_norm(x, 0.4))
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(both, ours, atol=1e-6)


def test_bad_arguments():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="known: sum, mean, max, lse, gmp"):
        aggregate.pool(x, "median")
    with pytest.raises(ValueError, match="positive"):
        aggregate.pool(x, "gmp", 0)
    with pytest.raises(ValueError, match="alpha 0"):
        aggregate.power_norm(x, 0)
    with pytest.raises(ValueError, match="add up to 3"):
        aggregate.page_descriptors(x, [1, 2])
