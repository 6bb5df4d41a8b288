"""The loop, on a small problem: restart, shardings, refusals, metrics."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from input_pipeline.errors import UserError
from saghog_jax import optim
from saghog_jax.checkpoint import load_variables
from saghog_jax.train import Run, init_state, make_step


class Batches:
    """Rows that are a function of the step."""

    def __init__(self, step):
        self.step, self.closed = step, False

    def __next__(self):
        rng = np.random.default_rng(self.step)
        self.step += 1
        return {"x": rng.normal(size=(16, 8)).astype(np.float32)}

    def close(self):
        self.closed = True


class Regression:
    """A linear map learns to undo another one; its loss is noisy so that the key matters."""

    kind = "mae"

    def __init__(self, config, spoil_step=None):
        self.tx = optim.make_optimizer(config.optim, config.total_steps)
        self.spoil_step = spoil_step
        self.opened = []

    def init(self, rng):
        kernel = jax.random.normal(rng, (8, 16))
        encoder = {"kernel": kernel, "bias": jnp.zeros(16)}
        return {"params": {"encoder": encoder}, "batch_stats": {"seen": jnp.zeros(())}}

    def warm_start(self, variables):
        return variables

    def loss(self, variables, batch, rng):
        params, seen = variables["params"], variables["batch_stats"]["seen"]
        noise = 0.1 * jax.random.normal(rng, batch["x"].shape)
        out = (batch["x"] + noise) @ params["encoder"]["kernel"] + params["encoder"]["bias"]
        loss = jnp.mean((out - jnp.tile(batch["x"], 2)) ** 2)
        if self.spoil_step is not None:
            loss = jnp.where(jnp.all(batch["x"] == Batches(self.spoil_step).__next__()["x"]),
                             jnp.nan, loss)  # fmt: skip
        return loss, {"batch_stats": {"seen": seen + jnp.mean(batch["x"])}}

    def batches(self, start_step):
        self.opened.append(Batches(start_step))
        return self.opened[-1]


def config(**changes):
    config = ConfigDict()
    common.run_config(config)
    config.optim = common.optim_config()
    config.stage = "pretrain"
    config.global_batch_size, config.total_steps = 16, 12
    config.log_every, config.checkpoint_every = 4, 5
    config.optim.warmup_steps, config.optim.learning_rate = 3, 0.05
    config.update(changes)
    return config


def fit(config, folder, **options):
    task = Regression(config, **options)
    Run(config, folder, "mae").fit(task)
    assert all(b.closed for b in task.opened)
    return load_variables(folder, ("mae",))[0]["params"]["encoder"]


def test_learns_and_writes_the_run_folder(tmp_path, capsys):
    fit(config(), tmp_path)
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines] == [4, 8, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    wanted = {"loss", "grad_norm", "learning_rate", "patches_per_second", "data_wait_share"}
    assert wanted <= set(lines[0])
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 12
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "12"]
    out = capsys.readouterr().out
    assert "step  8/12" in out
    assert "ETA" in out


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 5, 6, 11])
def test_a_stopped_run_ends_in_the_same_bits(tmp_path, stop):
    whole = fit(config(), tmp_path / "whole")
    task = Regression(config())
    loaded = Batches.__next__

    def stopping(batches):
        if batches.step == stop:
            raise StopError
        return loaded(batches)

    Batches.__next__ = stopping
    try:
        with pytest.raises(StopError):
            Run(config(), tmp_path / "stopped", "mae").fit(task)
    finally:
        Batches.__next__ = loaded
    again = fit(config(), tmp_path / "stopped")
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name])
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [4, 8, 12]


@pytest.mark.parametrize("mesh", [{"data": -1, "fsdp": 1}, {"data": 1, "fsdp": -1},
                                  {"data": 2, "fsdp": 4}])  # fmt: skip
def test_every_mesh_gives_the_same_parameters(tmp_path, mesh):
    ours = fit(config(mesh=ConfigDict(mesh)), tmp_path)
    # The same arithmetic without devices, batches or shardings to speak of.
    c = config()
    task = Regression(c)
    state = init_state(task, 0)
    update = jax.jit(make_step(task, 0))
    for step in range(12):
        state, _ = update(state, {k: jnp.asarray(v) for k, v in next(Batches(step)).items()})
    for name in ours:
        # Sums over devices are taken in another order: a few units of float32's last place.
        np.testing.assert_allclose(ours[name], state.params["encoder"][name], atol=1e-5)


def test_a_finished_run_is_known_and_another_config_refused(tmp_path):
    fit(config(), tmp_path)
    # What changes neither data nor mathematics may differ.
    for same in (config(), config(log_every=1, checkpoint_every=2)):
        assert Run(same, tmp_path, "mae").finished
    with pytest.raises(UserError) as error:
        Run(config(seed=7, global_batch_size=8), tmp_path, "mae")
    assert "seed: 0 there, 7 now" in str(error.value)
    assert "global_batch_size: 16 there, 8 now" in str(error.value)
    assert "--workdir" in str(error.value)


def test_seed_decides(tmp_path):
    a = fit(config(), tmp_path / "a")
    b = fit(config(), tmp_path / "b")
    c = fit(config(seed=1), tmp_path / "c")
    np.testing.assert_array_equal(a["kernel"], b["kernel"])
    assert np.abs(a["kernel"] - c["kernel"]).max() > 1e-3


def test_a_loss_that_is_no_number_stops_with_the_step(tmp_path):
    with pytest.raises(FloatingPointError, match="loss of step 8 is nan; the last checkpoint is 5"):
        fit(config(), tmp_path, spoil_step=7)


def test_params_are_loaded_only_for_what_they_can_do(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*configs/finetune.py"):
        load_variables(tmp_path / "nothing", ("writer",))
    fit(config(), tmp_path)
    with pytest.raises(UserError, match="of kind 'mae', but this needs 'writer'"):
        load_variables(tmp_path, ("writer",))
    variables, meta = load_variables(tmp_path, ("mae", "writer"))
    assert meta == {"kind": "mae", "step": 12}
    assert variables["params"]["encoder"]["kernel"].shape == (8, 16)
    # What the model keeps beside its parameters goes on from step to step, and is saved.
    seen = sum(Batches(step).__next__()["x"].mean() for step in range(12))
    assert variables["batch_stats"]["seen"] == pytest.approx(seen, abs=1e-5)
