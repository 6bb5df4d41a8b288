"""The loop, on a small problem: restart, shardings, refusals, metrics."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from regression import Batches, Regression, config

from saghog_jax.input_pipeline.errors import RunError, UserError
from saghog_jax.runs.checkpoint import load_variables
from saghog_jax.training import loop
from saghog_jax.training.loop import Run
from saghog_jax.training.task import init_state, make_step


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
    names = {"loss", "grad_norm", "learning_rate", "patches_per_second", "data_wait_share"}
    assert names <= set(lines[0])
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 12
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "12"]
    out = capsys.readouterr().out
    assert "step  8/12" in out
    assert "s left" in out


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


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    with pytest.raises(RunError, match="the loss of step 8 is nan; the last checkpoint is 5"):
        fit(config(), tmp_path / "between", spoil_step=7)
    # Also if that step would have saved a checkpoint.
    with pytest.raises(RunError, match="the loss of step 10 is nan; the last checkpoint is 5"):
        fit(config(), tmp_path / "saved", spoil_step=9)
    assert [p.name for p in (tmp_path / "saved" / "checkpoints").iterdir()] == ["5"]


def test_params_are_loaded_only_for_what_they_can_do(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*configs/finetune.py"):
        load_variables(tmp_path / "nothing", ("writer",))
    fit(config(), tmp_path)
    with pytest.raises(UserError, match="of kind 'mae', but this needs 'writer'"):
        load_variables(tmp_path, ("writer",))
    variables, meta = load_variables(tmp_path, ("mae", "writer"))
    assert (meta["kind"], meta["step"]) == ("mae", 12)
    assert variables["params"]["encoder"]["kernel"].shape == (8, 16)
    # Other collections of the model are updated in every step, and are saved.
    total = sum(Batches(step).__next__()["x"].mean() for step in range(12))
    assert variables["batch_stats"]["seen"] == pytest.approx(total, abs=1e-5)


def test_the_host_waits_for_an_update_only_when_two_more_are_unfinished(tmp_path, monkeypatch):
    c = config(checkpoint_every=100)
    task, fetched, get = Regression(c), [], jax.device_get

    def recording(values):
        if "loss" in values:
            fetched.append(task.opened[0].step)
        return get(values)

    monkeypatch.setattr(jax, "device_get", recording)
    Run(c, tmp_path, "mae").fit(task)
    # Update 1 when three batches are fetched, ..., all updates before the last state is saved.
    assert fetched == [*range(3, 13), 12, 12]


def test_accumulation_reaches_the_update_and_changes_nothing_but_rounding(tmp_path, monkeypatch):
    counts, make = [], loop.make_step

    def recording(task, seed, micro_batches):
        counts.append(micro_batches)
        return make(task, seed, micro_batches)

    whole = fit(config(), tmp_path / "whole")
    monkeypatch.setattr(loop, "make_step", recording)
    parts = fit(config(accumulate=2), tmp_path / "parts")
    assert counts == [2]
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5)
