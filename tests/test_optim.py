"""Schedule, parameter rules and optimiser."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from saghog_jax import optim

GOLDEN = Path(__file__).parent / "golden"


def section(**changes):
    fields = {
        "learning_rate": 8e-4,
        "start_learning_rate": 8e-5,
        "final_learning_rate": 8e-6,
        "warmup_steps": 50,
        "weight_decay": 0.05,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 0.02,
    }
    return ConfigDict(fields | changes)


@pytest.mark.parametrize(
    ("key", "start", "peak", "final", "warmup"),
    [
        ("f64_pre_lr", 8e-5, 8e-4, 8e-6, 50),
        ("f64_ft_lr", 0.0, 1e-3, 1e-5, 100),
        ("f64_ft13_lr", 1e-5, 1e-4, 1e-5, 7),
        ("f64_nowarm", 0.0, 1.0, 0.1, 0),
    ],
)
def test_schedule_is_the_published_one(key, start, peak, final, warmup):
    golden = np.load(GOLDEN / "schedule.npz")[key]
    config = section(
        start_learning_rate=start, learning_rate=peak, final_learning_rate=final,
        warmup_steps=warmup,
    )  # fmt: skip
    ours = optim.learning_rate(np.arange(len(golden)), config, len(golden), np)
    np.testing.assert_allclose(ours, golden, atol=1e-12, rtol=0)
    on_device = jax.jit(lambda s: optim.learning_rate(s, config, len(golden)))(
        jnp.arange(len(golden))
    )
    # float32 of the same formula: the cosine near its end loses digits of the peak, 1e-7 of it.
    np.testing.assert_allclose(on_device, golden, atol=2e-7 * peak, rtol=0)


def test_first_matching_rule_wins_and_every_parameter_needs_one():
    params = {"encoder": {"block_0": {"kernel": 1}, "norm": {"scale": 1}}, "head": {"kernel": 1}}
    rules = [("block_0", 0.25), ("kernel", 1.0), ("norm", 0.5)]
    assert optim.match_rules(params, rules) == {
        "encoder": {"block_0": {"kernel": 0.25}, "norm": {"scale": 0.5}},
        "head": {"kernel": 1.0},
    }
    with pytest.raises(ValueError, match="no rule covers parameter 'encoder/norm/scale'"):
        optim.match_rules(params, [("kernel", 1.0)])


def params_and_grads(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (4, 3), "bias": (3,), "token": (1, 1, 3)}
    make = lambda: {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}  # noqa: E731
    return make(), [make() for _ in range(3)]


def run(tx, params, grads):
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adamw_by_hand(params, grads, config, total, factor, decayed):
    """Plain numpy, float64, one parameter at a time."""
    params = {k: np.float64(v) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, grad in enumerate(grads):
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grad.values()))
        rate = optim.learning_rate(t, config, total, np)
        for k in params:
            g = np.float64(grad[k]) * min(1.0, config.clip_norm / norm)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * g**2
            step = (m[k] / (1 - config.b1 ** (t + 1))) / (
                np.sqrt(v[k] / (1 - config.b2 ** (t + 1))) + config.eps
            )
            lr = rate * factor(k)
            params[k] = params[k] - lr * step - lr * config.weight_decay * decayed(k) * params[k]
    return params


@pytest.mark.parametrize("all_decayed", [False, True])
def test_updates_equal_adamw_by_hand(all_decayed):
    config = section(learning_rate=0.1, start_learning_rate=0.01, warmup_steps=2)
    params, grads = params_and_grads()
    tx = optim.make_optimizer(
        config,
        10,
        rate_rules=[("bias", 0.5), ("", 1.0)],
        decay_rules=[("", 1)] if all_decayed else None,
    )
    ours = run(tx, params, grads)
    by_hand = adamw_by_hand(
        params, grads, config, 10,
        factor=lambda k: 0.5 if k == "bias" else 1.0,
        decayed=lambda k: all_decayed or k != "bias",
    )  # fmt: skip
    for k in params:
        # 1 - 0.999^t loses four digits in float32, so an update is right to 6e-5 of the rate, 0.1.
        np.testing.assert_allclose(ours[k], by_hand[k], atol=6e-6)


def test_factor_zero_freezes_and_clipping_bounds():
    params, grads = params_and_grads(1)
    frozen = run(optim.make_optimizer(section(), 10, [("kernel", 0.0), ("", 1.0)]), params, grads)
    np.testing.assert_array_equal(frozen["kernel"], params["kernel"])
    assert np.abs(frozen["bias"] - params["bias"]).max() > 0
    # Adam's first step hides the scale of a gradient; its memory shows it: a huge clipped first
    # gradient weighs no more than the second one.
    big = [jax.tree.map(lambda g: g * 1e4, grads[0]), *grads[1:]]
    clipped = run(optim.make_optimizer(section(clip_norm=1.0), 10), params, big)
    free = run(optim.make_optimizer(section(clip_norm=1e9), 10), params, big)
    assert np.abs(clipped["kernel"] - free["kernel"]).max() > 1e-5


def test_layer_factors_are_the_published_ones():
    z = np.load(GOLDEN / "schedule.npz")
    np.testing.assert_allclose(0.25 ** (8 - z["layer_index"].astype(float)), z["f64_layer_mult"])
