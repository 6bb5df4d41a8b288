"""How long commands take to start: a training to its first step, small stages to their end.

    python -m benchmarks.startup [PART] [--batch 256] [--rounds 3] [--folder runs/benchmarks]

`training` (the default): each run is a process of its own, timed from its start to the dispatch of
its first step at paper size: imports, a store that is there already, initialising, tracing,
compiling. `new` has an empty compilation cache; `restarted` goes on from the checkpoint of a run
that was stopped, with the cache that run filled.

`commands`: `verify` of a store of 80 pages and `retrieve` of 80 pages, each a process of its own,
from its start to its end. Both are mostly imports, and load neither jax nor scikit-learn; only the
map of the report needs scikit-learn.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import Report, Times
from benchmarks.our_steps import arguments
from benchmarks.retrieval import planted
from saghog_jax.configs import common
from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.retrieval.embeddings_writer import save_embeddings


def child(batch_size: int, workdir: Path, began: float) -> None:
    """One run: prints the seconds to its first step, and stops a little later."""
    from benchmarks.our_steps import pretraining, random_batch
    from saghog_jax.training.loop import Run

    # No checkpoint after the first step, for which the loop would wait.
    task = pretraining("auto", batch_size, checkpoint_every=2, total_steps=100)
    batch = random_batch(batch_size)
    del batch["label"]

    class Batches:
        """The same batch; the loop asks for the second when the first step is dispatched."""

        def __init__(self) -> None:
            self.given = 0

        def __iter__(self) -> Iterator:
            return self

        def __next__(self) -> dict[str, np.ndarray]:
            self.given += 1
            if self.given == 2:
                print(time.time() - began, flush=True)
            if self.given == 4:
                raise KeyboardInterrupt
            return batch

        def close(self) -> None:
            """Nothing to close."""

    task.batches = lambda start_step: Batches()
    try:
        Run(task.config, workdir, task.kind).fit(task)
    except KeyboardInterrupt:
        return


def seconds_to_first_step(batch_size: int, workdir: Path, cache: Path) -> float:
    """Runs `child` as a user's run starts: with huge pages and a compilation cache."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    arguments = ["--batch", str(batch_size), "--child", str(workdir), str(time.time())]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    numbers = [row for row in done.stdout.splitlines() if row.replace(".", "", 1).isdigit()]
    return float(numbers[0])


def write_pages(folder: Path) -> None:
    """Writes 80 pages by 20 writers, their store and their embeddings (`stores`, `embed`)."""
    corpus = synthetic.Corpus(
        train_writers=20, test_writers=0, pages=4, width=640, height=320, lines=4
    )
    data, store = common.data_config(""), common.store_config("offline")
    data.pages, store.root = str(synthetic.ensure(folder, corpus)), str(folder / "stores")
    pages = Store.open(ensure_store(data, store, log=lambda _: None)).manifest
    x, _ = planted(len(pages.pages), 512, 20)
    save_embeddings(folder / "embed", x, pages.pages, pages.root, {"model": "planted"})


def run_command(stage: str, workdir: Path, **fields: object) -> Times:
    """Seconds of one command from the start of its process to its end."""
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "saghog_jax.main", f"--config=configs/{stage}.py", *words]
    wall, used = time.perf_counter(), os.times()
    subprocess.run([*command, f"--workdir={workdir}"], check=True, capture_output=True)
    now = os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    return Times([time.perf_counter() - wall], [cpu])


def run_commands(report: Report, rounds: int) -> None:
    """Adds the figures of the part `commands`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pages(folder)
        embed = {"embeddings": folder / "embed", "report.evidence.queries": 0}
        commands = {
            "verify, 80 pages": ("verify", {"stores": folder / "stores"}),
            "retrieve, 80 pages, without map": ("retrieve", embed | {"report.map_pages": 0}),
            "retrieve, 80 pages": ("retrieve", embed),
        }
        times = {name: Times([], []) for name in commands}
        # The first round, untimed, reads the files of the libraries.
        for round_ in range(rounds + 1):
            for name, (stage, fields) in commands.items():
                one = run_command(stage, folder / "out", **fields)
                if round_:
                    times[name].wall.extend(one.wall)
                    times[name].cpu.extend(one.cpu)
    for name, seconds in times.items():
        # Other work on the machine delays a command, but takes little of its processor time.
        report.add(f"{name}, CPU", seconds.cpu, "s", "" if name == "retrieve, 80 pages" else "< 2")
        report.add(name, seconds.wall, "s")


def main() -> None:
    """Prints and writes the figures."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("part", nargs="?", default="training", choices=("training", "commands"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.batch, Path(args.child[0]), float(args.child[1]))
        return
    if args.part == "commands":
        report = Report("startup-commands")
        run_commands(report, args.rounds)
        report.write(args.folder)
        return
    seconds: dict[str, list[float]] = {"new": [], "restarted": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for taken in seconds.values():
                taken.append(
                    seconds_to_first_step(args.batch, Path(folder) / "run", Path(folder) / "cache")
                )
    import jax  # noqa: F401  so that its version is written

    report = Report("startup")
    report.add("new run, start to first step", seconds["new"], "s", "< 20")
    report.add("restarted run, start to first step", seconds["restarted"], "s", "< 10")
    report.write(args.folder)


if __name__ == "__main__":
    main()
