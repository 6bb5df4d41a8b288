"""Schedule, parameter rules and optimiser."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from places import TESTS

from saghog_jax.configs import finetune as finetune_config
from saghog_jax.models.mae import MaskedAutoencoder
from saghog_jax.models.vit import Encoder
from saghog_jax.models.writer_model import WriterModel
from saghog_jax.training import finetuning, optim
from saghog_jax.weights.torch_names import published_name

GOLDEN = TESTS / "golden"


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
    with pytest.raises(ValueError, match="no rule matches parameter 'encoder/norm/scale'"):
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


GROUPS = json.loads((GOLDEN / "schedule_groups.json").read_text())
SMALL = {"depth": 8, "width": 16, "heads": 2}  # names hang on the depth alone


def parameters(model, *inputs):
    """All ones in the shapes of a model's parameters, and the published name of each path."""
    shapes = jax.eval_shape(lambda key: model.init(key, *inputs), jax.random.key(0))["params"]
    prefix = "backbone." if "netrvlad" in shapes else ""
    names = {p: published_name(p, prefix) for p in jax.tree.leaves(optim.parameter_paths(shapes))}
    return jax.tree.map(lambda s: jnp.ones(s.shape), shapes), names


def moved_by_decay(tx, params):
    """How far each parameter, all ones, is moved when there is no gradient: by decay alone."""
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    paths = jax.tree.leaves(optim.parameter_paths(params))
    return dict(zip(paths, (-float(u.ravel()[0]) for u in jax.tree.leaves(updates)), strict=True))


def test_pretraining_decays_what_the_published_code_decays():
    model = MaskedAutoencoder(**SMALL, decoder_width=16, decoder_heads=2)
    params, names = parameters(model, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 64)), 0.75)
    moved = moved_by_decay(optim.make_optimizer(section(), 10), params)
    assert {names[path] for path in names if moved[path]} == set(GROUPS["pretrain_decay"])
    assert {names[path] for path in names if not moved[path]} == set(GROUPS["pretrain_no_decay"])
    # Fixed positions are no parameters of ours.
    assert set(GROUPS["pretrain_not_optimised"]) == {"pos_embed", "decoder_pos_embed"}


def test_published_groups_of_finetuning():
    """`optim.rates=published`: factor and decay of every parameter, at every stored step."""
    golden = np.load(GOLDEN / "schedule.npz")
    config = finetune_config.get_config("historical_wi")
    optimizer = config.optim
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.layer_decay) == (
        *GROUPS["betas"], GROUPS["eps"], GROUPS["layer_decay"],
    )  # fmt: skip
    model = WriterModel(Encoder(**SMALL), 4)
    params, names = parameters(model, jnp.zeros((1, 32, 32, 3)))
    factors = optim.match_rules(params, finetuning.rate_rules(config))
    paths = jax.tree.leaves(optim.parameter_paths(params))
    factors = dict(zip(paths, jax.tree.leaves(factors), strict=True))
    group_of = {name: i for i, g in enumerate(GROUPS["finetune_groups"]) for name in g["params"]}
    assert {n for n in names.values() if n not in group_of} == {"backbone.cls_token"}
    assert "backbone.cls_token" in GROUPS["finetune_not_in_optimizer"]
    assert factors["encoder/cls_token"] == 0
    # The stored schedule is of 600 iterations, the first 100 of them warm-up.
    total = len(golden["f64_ft_lr"])
    optimizer.warmup_steps = 100
    # Past its end the published schedule stays at its last value.
    its = np.minimum(golden["ft_group_its"], total - 1)
    rates = optim.learning_rate(its, optimizer, total, np)
    tx = optim.make_optimizer(
        optimizer, total, finetuning.rate_rules(config), finetuning.decay_rules(config)
    )
    optimizer.start_learning_rate = optimizer.learning_rate  # so that the first step shows decay
    moved = moved_by_decay(tx, params)
    for path, name in names.items():
        if name in group_of:
            group = GROUPS["finetune_groups"][group_of[name]]
            assert factors[path] == group["lr_multiplier"], path
            stored = golden["f64_ft_group_lr"][:, group_of[name]]
            np.testing.assert_allclose(rates * factors[path], stored, atol=1e-12, err_msg=path)
            expected = optimizer.learning_rate * factors[path] * group["weight_decay"]
            assert moved[path] == pytest.approx(expected, rel=1e-5), path


def test_weight_decay_is_constant():
    golden = np.load(GOLDEN / "schedule.npz")
    np.testing.assert_array_equal(golden["f64_pre_wd"], section().weight_decay)
    # In finetuning the published code computes a schedule of it, which it logs and does not apply
    # (the decay of its groups above is constant). It is our schedule with other ends.
    logged = section(
        start_learning_rate=0.0, learning_rate=0.01, final_learning_rate=0.0, warmup_steps=100
    )
    ours = optim.learning_rate(np.arange(600), logged, 600, np)
    np.testing.assert_allclose(ours, golden["f64_ft_wd"], atol=1e-12)
