"""Batches: as planned, divided among processes, from any step, by any number of threads."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from places import ROOT
from store_helpers import make_store

from saghog_jax.input_pipeline.batches.loader import batches, local_rows
from saghog_jax.input_pipeline.batches.plans import uniform_plan
from saghog_jax.input_pipeline.errors import UserError


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("loader") / "store", [30, 0, 25, 40])


class TestBatches:
    def read(self, store, plan, start=0, index=0, count=1, threads=2, prefetch=4, labels=None):
        with batches(store, plan, start, index, count, threads, prefetch, labels) as iterator:
            return list(iterator)

    def test_it_reads_what_the_plan_says(self, stored):
        store, arrays = stored
        plan, labels = uniform_plan(len(store), 16, 9, seed=5), np.arange(len(store)) % 7
        read = self.read(store, plan, labels=labels)
        assert len(read) == 9
        for step, batch in enumerate(read):
            np.testing.assert_array_equal(batch["patches"], arrays["patches"][plan[step]])
            np.testing.assert_array_equal(batch["ink"], arrays["ink"][plan[step]])
            np.testing.assert_array_equal(batch["label"], labels[plan[step]])
            assert batch["label"].dtype == np.int32
        assert "label" not in self.read(store, plan)[0]

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_processes_share_each_batch_without_overlap_or_gap(self, stored, count):
        store, arrays = stored
        plan = uniform_plan(len(store), 16, 9, seed=5)
        shares = [self.read(store, plan, index=i, count=count) for i in range(count)]
        for step, parts in enumerate(zip(*shares, strict=True)):
            together = np.concatenate([part["patches"] for part in parts])
            np.testing.assert_array_equal(together, arrays["patches"][plan[step]])

    @pytest.mark.parametrize("start", [0, 1, 5, 8, 9])
    def test_it_goes_on_at_any_step(self, stored, start):
        store, _ = stored
        plan = uniform_plan(len(store), 16, 9, seed=5)
        rest = self.read(store, plan, start=start)
        assert len(rest) == 9 - start
        for batch, expected in zip(rest, self.read(store, plan)[start:], strict=True):
            np.testing.assert_array_equal(batch["patches"], expected["patches"])

    @pytest.mark.parametrize(("threads", "prefetch"), [(0, 0), (1, 1), (3, 2), (8, 16)])
    def test_threads_do_not_change_the_batches(self, stored, threads, prefetch):
        store, _ = stored
        # 60 patches a batch of 95: three epochs in five steps, read far ahead.
        plan = uniform_plan(len(store), 60, 20, seed=5)
        read = self.read(store, plan, threads=threads, prefetch=prefetch)
        for step, batch in enumerate(read):
            np.testing.assert_array_equal(batch["ink"], store.gather(plan[step])["ink"])

    def test_closing_early_leaves_no_thread(self, stored):
        store, _ = stored
        before = set(threading.enumerate())
        iterator = batches(store, uniform_plan(len(store), 16, 500, seed=5), 0, 0, 1, 4, 8)
        next(iterator)
        assert set(threading.enumerate()) - before
        iterator.close()
        deadline = time.monotonic() + 10
        while left := set(threading.enumerate()) - before:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)

    def test_uneven_shares_are_refused(self, stored):
        store, _ = stored
        plan = uniform_plan(len(store), 16, 9, seed=5)
        with pytest.raises(UserError, match="=16 does not divide evenly among 3 processes"):
            self.read(store, plan, count=3)
        with pytest.raises(ValueError, match="process_index 2"):
            local_rows(16, 2, 2)

    def test_a_start_beyond_the_end_is_refused(self, stored):
        with pytest.raises(ValueError, match="start_step 10"):
            self.read(stored[0], uniform_plan(len(stored[0]), 16, 9, seed=5), start=10)


READ = """
import sys
import numpy as np
from pathlib import Path
from benchmarks.loader import PeakMemory
from saghog_jax.input_pipeline.batches.loader import batches
from saghog_jax.input_pipeline.batches.plans import uniform_plan
from saghog_jax.input_pipeline.store.reader import Store
import grain
store = Store.open(sys.argv[1])
plan = uniform_plan(len(store), 2048, 60, 0)
with PeakMemory() as memory, batches(store, plan, 0, 0, 1, 2, 4) as iterator:
    total = sum(len(batch["patches"]) for batch in iterator)
assert total == 60 * 2048
print(len(store), memory.peak)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    peaks = {}
    for shards in (3, 63):
        # All shards share the bytes of one, on the disk and in the cache, but not in the reader.
        folder = tmp_path / str(shards)
        make_store(folder, [8000, 8000])
        info = json.loads((folder / "store.json").read_text())
        for number in range(1, shards):
            shutil.copytree(
                folder / "shards" / "00000",
                folder / "shards" / f"{number:05d}",
                copy_function=os.link,
            )
            info["shards"].append({**info["shards"][0], "name": f"{number:05d}"})
        (folder / "store.json").write_text(json.dumps(info))
        done = subprocess.run(
            [sys.executable, "-c", READ, folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        patches, peaks[shards] = map(int, done.stdout.split())
        assert patches == shards * 16_000
    assert peaks[63] < 2**30
    # The order of one epoch takes 4 bytes per patch, and as much again while it is computed.
    assert peaks[63] - peaks[3] < 8 * 60 * 16_000 + 2**24
