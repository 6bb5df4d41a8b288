"""The choice of the operands of matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.our_steps import compiled_step, pretraining
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.devices import precision
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.models import build


@pytest.mark.parametrize("faster", [True, False])
def test_auto_is_what_suits_the_machine(monkeypatch, faster):
    monkeypatch.setattr(precision, "_mixed_is_faster", lambda: faster)
    config = ConfigDict({"precision": "auto"}).lock()
    assert precision.resolve(config).precision == ("mixed" if faster else "float32")
    assert config.precision == "auto"
    for name in ("float32", "mixed"):
        assert precision.resolve(ConfigDict({"precision": name})).precision == name


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match="unknown config.precision 'half', known: auto, float32"):
        precision.resolve(ConfigDict({"precision": "half"}))


def test_mixed_is_used_and_near_float32():
    config = pretrain_config.get_config()
    config.model.update({"width": 16, "depth": 1, "heads": 2, "decoder_width": 16})
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    noise = jax.random.uniform(jax.random.key(2), (4, 64))
    out = {}
    for name in ("float32", "mixed"):
        config.precision = name
        variables = build.init_variables(config, jax.random.key(0))
        model = build.model_of(config)
        out[name] = model.apply(variables, images, noise, 0.75)["pred"]
        assert out[name].dtype == jnp.float32
    assert jnp.any(out["float32"] != out["mixed"])
    # bfloat16 has eight bits: operands are right to 1/256, and errors of a sum average out.
    error = jnp.linalg.norm(out["mixed"] - out["float32"]) / jnp.linalg.norm(out["float32"])
    assert error < 0.02


def test_the_loss_curve_of_mixed_precision_lies_on_that_of_float32():
    curves = {}
    for name in ("float32", "mixed"):
        sizes = {"model.width": 32, "model.depth": 2, "model.heads": 2, "model.decoder_width": 32,
                 "model.decoder_heads": 2, "optim.clip_norm": 1.0, "optim.warmup_steps": 5,
                 "optim.learning_rate": 3e-3, "total_steps": 60}  # fmt: skip
        step = compiled_step(pretraining(name, 32, **sizes))
        curves[name] = np.array([step() for _ in range(60)])
    exact, mixed = curves["float32"], curves["mixed"]
    assert exact[-1] < 0.8 * exact[0]
    assert np.any(exact != mixed)
    # Wherever the loss has come to, rounding of operands moves it by less than a hundredth.
    np.testing.assert_allclose(mixed, exact, rtol=0.01)
