"""Patches a second and memory of the loader, on stores of random bytes.

    python -m benchmarks.loader [--patches 1000000] [--small 50000] [--folder FOLDER]

Makes two stores (3.2 KB a patch), then, a store at a time in a fresh process:

  uniform      batches of 2,048 of all patches shuffled, delivered by `loader.batches`
  m per class  the same with 16 patches of each of 128 classes
  plan         the indices alone
  gather       the reads alone, on one thread
  memory       peak anonymous memory (RssAnon) of the process while it reads

Patches a second of a core: patches over CPU time of the process, all threads.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Report, alternate, rates
from saghog_jax.input_pipeline.batches.loader import batches
from saghog_jax.input_pipeline.batches.plans import m_per_class_plan, uniform_plan
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.writer import PageResult, finish_store, shard_name, write_shard

BATCH, PER_CLASS, CLASSES = 2048, 16, 5000
PATCHES_A_PAGE, PAGES_A_SHARD = 1000, 16
ROUNDS, STEPS = 5, 60


def make_store(folder: Path, patches: int) -> None:
    """A store of random bytes, laid out as `prepare` lays out pages of 1,000 patches."""
    rng = np.random.default_rng(0)
    workspace = folder / "building"
    (folder / "shards").mkdir(parents=True)
    n_pages = patches // PATCHES_A_PAGE
    for number, first in enumerate(range(0, n_pages, PAGES_A_SHARD)):
        count = min(PAGES_A_SHARD, n_pages - first)
        n = count * PATCHES_A_PAGE
        arrays = {
            "patches": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            "ink": rng.integers(0, 256, (n, 128), np.uint8),
            "page": np.repeat(np.arange(first, first + count, dtype=np.int32), PATCHES_A_PAGE),
            "x": rng.integers(0, 2000, n, np.int32),
            "y": rng.integers(0, 1500, n, np.int32),
        }
        results = [PageResult(PATCHES_A_PAGE, "ok", "")] * count
        parts = {key: [array] for key, array in arrays.items()}
        write_shard(folder / "shards", workspace, shard_name(number), parts, results)
    pages = tuple(Page(f"{i}.png", f"w{i % 50}", str(i), "", None, {}) for i in range(n_pages))
    config = {"rule": "pretrain", "patch_size": 32, "pages_per_shard": PAGES_A_SHARD}
    finish_store(folder, workspace, Manifest(Path("."), pages, ()), config, "benchmark")
    shutil.rmtree(workspace)


class PeakMemory:
    """Samples this process's anonymous memory while the block runs."""

    def __enter__(self) -> "PeakMemory":
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()


def anonymous_memory() -> int:
    """RssAnon of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def measure(folder: str, results: multiprocessing.Queue) -> None:
    """Measures one store, in a process of its own."""
    store = Store.open(folder)
    n = len(store)
    # Once through the files: the figures are those of a store in the page cache.
    for path in Path(folder).rglob("*.npy"):
        with path.open("rb") as file:
            while file.read(2**20):
                pass
    labels = np.random.default_rng(0).integers(-1, CLASSES, n)
    plans = {
        "uniform": uniform_plan(n, BATCH, STEPS, seed=0),
        "m per class": m_per_class_plan(labels, PER_CLASS, BATCH, STEPS, seed=0),
    }
    import grain  # noqa: F401  its memory and jax's are not the loader's

    found = {"patches": n, "before": anonymous_memory() / 2**20, "rates": {}}

    def read(plan):
        with batches(store, plan, 0, 0, 1, threads=1, prefetch=2) as iterator:
            for batch in iterator:
                assert batch["patches"].shape == (BATCH, 32, 32, 3)

    with PeakMemory() as memory:
        for name, plan in plans.items():
            indices = [plan[step] for step in range(STEPS)]
            times = alternate(
                ROUNDS,
                delivered=lambda plan=plan: read(plan),
                plan=lambda plan=plan: [plan[step] for step in range(STEPS)],
                gather=lambda indices=indices: [len(store.gather(part)) for part in indices],
            )
            for way, side in times.items():
                found["rates"][f"{name}, {way}"] = rates(side, BATCH * STEPS, by="cpu")
    found["peak"] = memory.peak / 2**20
    results.put(found)


def in_new_process(folder: Path) -> dict:
    """Runs `measure` where nothing was allocated before."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(str(folder), results))
    process.start()
    found = results.get()
    process.join()
    return found


def main() -> None:
    """Makes the stores and prints the figures of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=50_000)
    parser.add_argument("--folder", default=None, help="for the stores; kept if given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as temporary:
        measure_stores(Path(args.folder or temporary), (args.small, args.patches))


def measure_stores(root: Path, sizes: Sequence[int]) -> None:
    """Makes a store of each size, unless it is there, and writes the figures of all."""
    report = Report("loader")
    wanted = {"uniform, delivered": ">= 100000", "m per class, delivered": ">= 50000"}
    for patches in sizes:
        folder = root / str(patches)
        if not (folder / "store.json").exists():
            make_store(folder, patches)
        found = in_new_process(folder)
        size = f"{patches:,} patches"
        for name, values in found["rates"].items():
            report.add(f"{size}: {name}", values, "patches/s of a core", wanted.get(name, ""))
        report.add(f"{size}: RssAnon before", found["before"], "MiB")
        report.add(f"{size}: RssAnon at most", found["peak"], "MiB", "< 1024")
    report.write()


if __name__ == "__main__":
    main()
