"""Several real processes of one run over the loopback: equal results, and no deadlock."""

import json
import signal
import sys

import numpy as np
import pytest
from processes import ended, free_port, losses, parameters, regression, start, together, wait_for
from toy import fields, toy

from saghog_jax.configs import finetune, pretrain
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.runs.checkpoint import newest_step
from saghog_jax.stages import run_stage

pytestmark = pytest.mark.slow
CHANGES = {"total_steps": 30, "mesh.fsdp": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run folder of one process with two devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    (results,) = ended(regression(folder, CHANGES, devices=2))
    assert results[0] == 0, results[1]
    return folder


def assert_same_run(ours, theirs):
    a, b = losses(ours), losses(theirs)
    assert list(a) == list(b) == list(range(1, 31))
    # Each loss depends on every row of its batch and on all updates before: sums over devices are
    # taken in another order, nothing else differs.
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)
    for name, array in parameters(theirs).items():
        np.testing.assert_allclose(parameters(ours)[name], array, atol=1e-5)


@pytest.mark.parametrize(("n", "devices"), [(2, 2), (4, 1)])
def test_several_processes_learn_what_one_does(tmp_path, alone, n, devices):
    for status, out in ended(*together(tmp_path, n, CHANGES, devices=devices)):
        assert status == 0, out
    assert_same_run(tmp_path, alone)


def test_stopped_with_four_it_goes_on_with_two_and_with_one(tmp_path, alone):
    pause = {"pause": 0.05}
    processes = together(tmp_path, 4, CHANGES, pause)
    wait_for(processes[0], "step  5/30")
    # One process receives the signal; all save the same step.
    processes[2].send_signal(signal.SIGTERM)
    for status, out in ended(*processes):
        assert status == 143, out
        assert "stopped by SIGTERM after step" in out
    first = newest_step(tmp_path)
    assert 5 <= first < 15
    processes = together(tmp_path, 2, {**CHANGES, "mesh.fsdp": 1}, pause, devices=4)
    assert str(first) in wait_for(processes[0], "continuing from step")
    wait_for(processes[0], "step 20/30")
    processes[0].send_signal(signal.SIGTERM)
    for status, out in ended(*processes):
        assert status == 143, out
    (results,) = ended(regression(tmp_path, {**CHANGES, "mesh.fsdp": 4}, devices=8))
    assert results[0] == 0, results[1]
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize(
    ("kind", "victim", "n", "devices"), [("kill", 2, 4, 1), ("kill", 0, 2, 2), ("raise", 1, 2, 2)]
)
def test_when_one_goes_the_others_say_so_and_stop(tmp_path, alone, kind, victim, n, devices):
    changes = {**CHANGES, "mesh.fsdp": 1}
    trouble = {"step": 17, "process": victim, "kind": kind}
    processes = together(tmp_path, n, changes, trouble, devices=devices)
    assert processes[victim].wait(300) != 0
    results = ended(*processes, within=120)
    for i, (status, out) in enumerate(results):
        assert status != 0
        if i != victim:
            reasons = ("stops, because", "another task died", "JAX distributed service detected")
            assert any(reason in out for reason in reasons), out
    # The one of step 15 may not have been whole yet; a half one does not count.
    assert newest_step(tmp_path) in (10, 15)
    again = ended(*together(tmp_path, 2, changes))
    assert all(status == 0 for status, _ in again), again
    assert_same_run(tmp_path, alone)


def test_processes_find_each_other_by_slurm(tmp_path, alone):
    def of(i):
        return {
            "SLURM_JOB_ID": "41234", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_NODES": "1",
        }  # fmt: skip

    changes = {**CHANGES, "distributed.mode": "auto"}
    for status, out in ended(*(regression(tmp_path, changes, **of(i)) for i in range(2))):
        assert status == 0, out
    assert_same_run(tmp_path, alone)


def test_alone_it_is_never_taken_for_several(tmp_path):
    (results,) = ended(regression(tmp_path, {"distributed.mode": "auto"}))
    assert results[0] == 2
    assert "config.distributed.mode=auto: the processes could not be joined" in results[1]
    missing = {
        "distributed.mode": "explicit", "distributed.coordinator": "127.0.0.1:1",
        "distributed.num_processes": 2, "distributed.process_id": 1,
        "distributed.start_timeout": 5,
    }  # fmt: skip
    (results,) = ended(regression(tmp_path, missing), within=60)
    assert results[0] != 0
    assert not (tmp_path / "checkpoints").exists()


def command(words, port, i):
    together = [
        "--config.distributed.mode=explicit",
        f"--config.distributed.coordinator=127.0.0.1:{port}",
        "--config.distributed.num_processes=2",
        f"--config.distributed.process_id={i}",
    ]
    return start([sys.executable, *words, *together], devices=4)


def figures(folder):
    """The metrics of held-out pages after the last step."""
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 4 and "loss" not in line]
    return last


TINY = Corpus(train_writers=4, test_writers=1, pages=2, width=360, height=200, lines=3)


def test_both_stages_learn_the_same_with_two_processes(tmp_path):
    """The command line itself, with evaluation, against the same in this process."""
    (tmp_path / "pages").mkdir()
    write_corpus(tmp_path / "pages", TINY, workers=1)
    changes = {"validation.share": 0.5, "validation.every": 2, "validation.patches_per_page": 8}
    for module in (pretrain, finetune):
        stage = module.__name__.removeprefix("saghog_jax.configs.")
        config = toy(module.get_config(), tmp_path, **changes)
        run_stage(config, tmp_path / stage)
        plain = module.get_config()
        flags = [
            f"--config.{key}={value}"
            for key, value in fields(config).items()
            if value != fields(plain)[key] and not isinstance(value, tuple)
        ]
        folder = tmp_path / f"{stage}-two"
        words = ["-m", "saghog_jax.main", f"--config=configs/{stage}.py", f"--workdir={folder}"]
        port = free_port()
        results = ended(*(command([*words, *flags], port, i) for i in range(2)))
        assert all(status == 0 for status, _ in results), results
        # Only the main process logs.
        assert [out.count("next: ") for _, out in results] == [1, 0]
        a, b = losses(folder), losses(tmp_path / stage)
        assert list(a) == [1, 2, 3, 4]
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)
        assert figures(folder) == pytest.approx(figures(tmp_path / stage), rel=1e-3)
