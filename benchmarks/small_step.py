"""Updates of the recipe `small`: this version against an earlier one, and one device a core.

    python -m benchmarks.small_step [--rounds 7] [--updates 8] [--folder runs/benchmarks]

float32 with the instructions of AVX2, as on a CPU without bfloat16; random patches. Each side
runs in its own process. All processes compile first and then make some updates in turn. The earlier
version is commit 3e6b750, which `git archive` unpacks. The cores are then measured again
with one busy process a core beside.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks.measure import FOLDER, Report, Times, rates
from saghog_jax.configs import finetune, pretrain
from saghog_jax.input_pipeline.processes.workers import usable_cores

ROOT = Path(__file__).parents[1]
BEFORE = "3e6b750"
STAGES = ("finetune", "pretrain")
FLAGS = "--xla_cpu_max_isa=AVX2"


def get_config(stage: str) -> ConfigDict:
    """The recipe of a stage, in float32."""
    config = {"finetune": finetune, "pretrain": pretrain}[stage].get_config("small")
    config.update_from_flattened_dict({"precision": "float32", "checkpoint": ""})
    return config


def small_task(stage: str) -> tuple:
    """The task of a stage, and a random batch as the loader ships it."""
    from saghog_jax.training.finetuning import Finetuning
    from saghog_jax.training.pretraining import Pretraining

    config = get_config(stage)
    n = config.global_batch_size
    rng = np.random.default_rng(0)
    ink = np.kron(rng.random((n, 8, 8)) < 0.3, np.ones((4, 4), bool))
    batch = {
        "patches": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
        "ink": np.packbits(ink.reshape(n, -1), axis=1),
    }
    if stage == "pretrain":
        return Pretraining(config, None), batch
    config.netrvlad.init = "random"
    per_class = config.patches_per_class
    batch["label"] = np.repeat(np.arange(n // per_class, dtype=np.int32), per_class)
    # A store of which the task only reads the pages.
    store = types.SimpleNamespace(index={"page": np.arange(n) // config.patches_per_bag})
    return Finetuning(config, store, batch["label"]), batch


def serve(stage: str, devices: int, updates: int) -> None:
    """Makes `updates` updates for each line of the standard input, as the loop does.

    Writes a line with the seconds of the clock and of all threads. Runs in both versions.
    """
    from saghog_jax.restart import use_huge_pages

    use_huge_pages()
    import time

    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    from saghog_jax.devices import sharding
    from saghog_jax.training.loop import _compiled_update
    from saghog_jax.training.task import init_state

    task, rows = small_task(stage)
    mesh = sharding.make_mesh(task.config.mesh)
    shardings = sharding.state_shardings(jax.eval_shape(lambda: init_state(task, 0)), mesh)
    state = jax.jit(lambda: init_state(task, 0), out_shardings=shardings)()
    update = _compiled_update(task, task.config, mesh, shardings)
    stop = sharding.to_device({"stop": np.zeros(devices, np.int32)}, mesh)["stop"]

    def run() -> None:
        nonlocal state
        waiting = []
        for _ in range(updates):
            state, metrics = update(state, sharding.to_device(rows, mesh), stop)
            waiting.append(metrics["loss"])
            if len(waiting) > 2:
                float(waiting.pop(0))
        jax.block_until_ready(state)

    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


@contextlib.contextmanager
def served(tree: Path, stage: str, devices: int, updates: int) -> Iterator[subprocess.Popen]:
    """A process that serves the version in the folder `tree`."""
    environ = {**os.environ, "PYTHONPATH": str(tree), "XLA_FLAGS": FLAGS}
    environ.pop("GLIBC_TUNABLES", None)
    words = [sys.executable, __file__, "--serve", stage, "--devices", str(devices)]
    process = subprocess.Popen(
        [*words, "--updates", str(updates)], env=environ, cwd=tree, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line == "ready\n":
                break
        else:
            raise RuntimeError(f"the process of {stage} in {tree} failed")
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """`count` processes that compute all the time."""
    words = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(words) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def earlier() -> Iterator[Path]:
    """A folder with the earlier version."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        # As the installation maps these packages.
        for package in ("configs", "input_pipeline"):
            (Path(folder) / "saghog_jax" / package).symlink_to(Path(folder) / package)
        yield Path(folder)


def measure(sides: dict[str, subprocess.Popen], rounds: int, updates: int) -> dict:
    """Times of one update of each side, in turn."""
    times = {name: Times([], []) for name in sides}
    for round_ in range(rounds):
        for name in list(sides) if round_ % 2 == 0 else list(reversed(sides)):
            sides[name].stdin.write("\n")
            wall, cpu = map(float, sides[name].stdout.readline().split())
            times[name].wall.append(wall / updates)
            times[name].cpu.append(cpu / updates)
    return times


def add(report: Report, name: str, times: dict[str, Times], patches: int) -> None:
    """Adds the rates of all sides, and the ratios of their times."""
    for side, taken in times.items():
        report.add(f"{name}, {side}", rates(taken, patches), "patches/s")
        report.add(f"{name}, {side}, processor time", taken.cpu, "s an update")
    before, one, divided = times.values()
    target = ">= 1.5" if name == "finetune, idle" else ""
    report.ratio(f"{name}, one device to before", before, one)
    report.ratio(f"{name}, one device a core to before", before, divided, target)
    report.ratio(f"{name}, one device a core to one device", one, divided)
    report.ratio(f"{name}, one device to before, processor time", before, one, by="cpu")


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.devices, args.updates)
        return
    cores = usable_cores()
    report = Report("small-step")
    with earlier() as before:
        for stage in STAGES:
            trees = {
                "before": (before, 1),
                "one device": (ROOT, 1),
                f"{cores} devices": (ROOT, cores),
            }
            with contextlib.ExitStack() as stack:
                sides = {
                    name: stack.enter_context(served(tree, stage, devices, args.updates))
                    for name, (tree, devices) in trees.items()
                }
                for state, neighbours in (("idle", 0), ("busy", cores)):
                    with busy(neighbours):
                        times = measure(sides, args.rounds, args.updates)
                    add(report, f"{stage}, {state}", times, get_config(stage).global_batch_size)
    report.write(args.folder)


if __name__ == "__main__":
    main()
