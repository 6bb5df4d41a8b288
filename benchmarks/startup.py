"""How long a run takes to its first step at paper size, and to go on after it was stopped.

    python -m benchmarks.startup [--batch 256] [--rounds 3] [--folder runs/benchmarks]

Each run is a process of its own, timed from its start to the dispatch of its first step: imports,
a store that is there already, initialising, tracing, compiling. `new` has an empty compilation
cache; `restarted` goes on from the checkpoint of a run that was stopped, with the cache that run
filled.
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

from benchmarks.measure import Report
from benchmarks.our_steps import arguments


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


def main() -> None:
    """Prints and writes the figures."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.batch, Path(args.child[0]), float(args.child[1]))
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
