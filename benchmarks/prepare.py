"""How long `prepare` takes for many large pages, and what a second process brings.

    python -m benchmarks.prepare [--pages 1000] [--rounds 3] [--rule pretrain]
        [--processes 1 2] [--folder FOLDER]

Writes synthetic pages of 2000 x 1500 pixels, then cuts them into stores of at most 1,000 patches a
page with 1 and with 2 processes (or as told), each on one thread, alternately: seconds, and CPU
seconds a page (user and system, all processes).
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Report, cpu_seconds
from saghog_jax.configs import common
from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.store.build import ensure_store


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description="prepare benchmark")
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rule", default="pretrain")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", default=None, help="for the pages; kept if given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepare-benchmark-") as temporary:
        root = Path(args.folder or temporary)
        corpus = synthetic.Corpus(
            train_writers=args.pages, test_writers=0, pages=1, width=2000, height=1500, lines=20
        )
        data = common.data_config("")
        data.pages = str(synthetic.ensure(root, corpus))
        seconds: dict[int, list[float]] = {number: [] for number in args.processes}
        cpu: dict[int, list[float]] = {number: [] for number in args.processes}
        for _ in range(args.rounds):
            for workers in seconds:
                store = common.store_config(args.rule)
                store.root, store.workers = str(root / "stores"), workers
                used, start = cpu_seconds(), time.perf_counter()
                ensure_store(data, store, log=lambda _: None)
                seconds[workers].append(time.perf_counter() - start)
                cpu[workers].append((cpu_seconds() - used) / args.pages)
                shutil.rmtree(store.root)
        report = Report(f"prepare-{args.pages}")
        for number, times in seconds.items():
            report.add(f"{args.pages} pages, {number} processes", times, "s")
            report.add(f"{args.pages} pages, {number} processes, cost", cpu[number], "CPU s a page")
        if {1, 2} <= seconds.keys():
            ratios = [one / two for one, two in zip(seconds[1], seconds[2])]
            report.add("1 process / 2 processes", ratios, "times", ">= 1.7")
        report.write()


if __name__ == "__main__":
    main()
