"""Interruptions of runs: signals, kills, full disks, damage, a second run, clocks."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from processes import ended, losses, parameters, regression, wait_for
from regression import Batches, Regression, config

from saghog_jax.input_pipeline.errors import StoppedError, UserError
from saghog_jax.runs.checkpoint import load_variables, newest_step
from saghog_jax.runs.folder import locked
from saghog_jax.training.loop import Run


def fit(folder, **changes):
    c = config(**changes)
    Run(c, folder, "mae").fit(Regression(c))
    return parameters(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Parameters of an uninterrupted run of 12 steps."""
    return fit(tmp_path_factory.mktemp("undisturbed") / "run")


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def at_step(monkeypatch, step, action):
    """Calls `action` when the batch of a step (from 0) is fetched."""
    fetch = Batches.__next__

    def fetching(batches):
        if batches.step == step:
            action()
        return fetch(batches)

    monkeypatch.setattr(Batches, "__next__", fetching)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, monkeypatch, undisturbed, number):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: (os.kill(os.getpid(), number), time.sleep(0.2)))
        with pytest.raises(StoppedError, match=f"stopped by {number.name} after step") as stopped:
            fit(tmp_path)
    assert stopped.value.signal == number
    assert signal.getsignal(number) is before
    # The signal comes at step 7; the run saves a few updates later, not at a multiple of five.
    assert newest_step(tmp_path) in (7, 8, 9)
    assert_same_bits(fit(tmp_path), undisturbed)
    # The signal travels with the metrics of a step, but is not logged.
    assert '"stop"' not in (tmp_path / "metrics.jsonl").read_text()


def test_a_damaged_checkpoint_is_reported_and_skipped(tmp_path, undisturbed, capsys):
    fit(tmp_path)
    files = [p for p in (tmp_path / "checkpoints" / "12").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    _, meta = load_variables(tmp_path, ("mae",))
    assert meta["step"] == 10
    assert "checkpoint 12" in capsys.readouterr().out
    assert_same_bits(fit(tmp_path), undisturbed)
    out = capsys.readouterr().out
    assert out.count("checkpoint 12") == 1
    assert "has changed): taking the one before" in out
    assert "continuing from step 10" in out
    assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["12-0"]
    # A file that is gone is damage too; with both gone there is none to go on from.
    for step in (10, 12):
        next((tmp_path / "checkpoints" / str(step) / "optimizer").rglob("manifest*")).unlink()
    with pytest.raises(UserError, match="no checkpoint in"):
        load_variables(tmp_path, ("mae",))
    assert "is missing)" in capsys.readouterr().out
    assert_same_bits(fit(tmp_path), undisturbed)


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match=rf"in use .*process {os.getpid()} on "):
        fit(tmp_path)
    fit(tmp_path)


def test_clocks_may_jump(tmp_path, monkeypatch, undisturbed):
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + rng.uniform(-1, 1) * 1e8)
    assert_same_bits(fit(tmp_path, log_every=1), undisturbed)
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for line in lines:
        assert line["patches_per_second"] > 0
        assert 0 <= line["data_wait_share"] <= 1


LONG = {"total_steps": 120, "checkpoint_every": 2}


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_in_the_same_bits(tmp_path):
    """Kills while training, and while a checkpoint is being written."""
    rng = random.Random(7)
    pause = {"pause": 0.03}
    ((status, out),) = ended(regression(tmp_path / "whole", LONG))
    assert status == 0, out
    folder, in_saving, lost = tmp_path / "killed", 0, []
    for kill in range(20):
        process = regression(folder, LONG, pause)
        reached = int(wait_for(process, "step ").split("step ")[1].split("/")[0].split()[0])
        if kill % 2:
            wait_for(process, f"step {reached + rng.randrange(1, 3):3d}/120")
            time.sleep(rng.uniform(0, 0.1))
        else:
            while process.poll() is None and not list(folder.glob("checkpoints/*tmp*")):
                time.sleep(0.0005)
            time.sleep(rng.choice([0, 0.002, 0.01]))
        in_saving += bool(list(folder.glob("checkpoints/*tmp*")))
        process.kill()
        process.communicate()
        lost.append(max(losses(folder)) - (newest_step(folder) or 0))
    print(f"{in_saving} of 20 kills while saving, lost at most {max(lost)} steps")
    assert in_saving >= 5
    # The step after a checkpoint may be under way, and its metrics, while the next is written.
    assert max(lost) <= 2 * LONG["checkpoint_every"]
    ((status, out),) = ended(regression(folder, LONG))
    assert status == 0, out
    assert_same_bits(parameters(folder), parameters(tmp_path / "whole"))
    assert losses(folder) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_the_second_signal_stops_at_once(tmp_path):
    process = regression(tmp_path, {}, {"pause": 3.0})
    wait_for(process, "training: ")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    wait_for(process, "a second signal stops at once")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ((status, _),) = ended(process)
    assert status == 143
    assert time.monotonic() - began < 1.5
    assert newest_step(tmp_path) is None


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_whole_checkpoints(tmp_path):
    # Metrics would be the first that does not fit.
    changes = {"log_every": 100, "tensorboard": False}
    trouble = {"step": 7, "kind": "full", "after": str(tmp_path / "checkpoints" / "5")}
    ((status, out),) = ended(regression(tmp_path, changes, trouble))
    assert status == 1, out
    message = (
        f"error: checkpoint 10 could not be written to {tmp_path}: File too large; "
        "the last whole one is 5"
    )
    # A library's threads may complain before or after, of a loop that is closed.
    assert message in out
    assert "never retrieved" not in out
    ((status, out),) = ended(regression(tmp_path, changes))
    assert status == 0, out
    assert "continuing from step 5" in out
    ((status, out),) = ended(regression(tmp_path / "whole", changes))
    assert_same_bits(parameters(tmp_path), parameters(tmp_path / "whole"))
