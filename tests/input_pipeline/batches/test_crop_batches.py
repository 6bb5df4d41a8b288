"""Batches cut on the fly: a function of config, seed and step; and the processes that cut."""

import contextlib
import functools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from crop_helpers import PER_SLOT, SIZE, mixed_recipe, plain_recipe
from ml_collections import ConfigDict
from places import ROOT
from store_helpers import write_pages
from toy import toy

from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.input_pipeline.batches.crop_batches import PageCrops
from saghog_jax.input_pipeline.batches.crops import Cutter
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.servers import Servers
from saghog_jax.runs.checkpoint import load_variables, params_digest
from saghog_jax.stages import run_stage


def loader(workers=1, threads=2, prefetch=2, cache_mb=10.0):
    return ConfigDict(
        {"workers": workers, "threads": threads, "prefetch": prefetch, "cache_mb": cache_mb}
    )


def read(source, start=0, index=0, count=1, **options):
    with source.batches(start, index, count, loader(**options)) as batches:
        return list(batches)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return plain_recipe(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_recipe(tmp_path_factory.mktemp("mixed"))


def source_of(recipe, total_steps=6, global_batch_size=4 * PER_SLOT, log=lambda line: None):
    return PageCrops(recipe, global_batch_size, total_steps, log)


def assert_equal(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert one.keys() == other.keys() == {"patches", "ink"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


class TestBatches:
    def test_a_batch_is_the_slots_of_its_step(self, recipe):
        cutter = Cutter(recipe, 10**8)
        batches = read(source_of(recipe))
        assert len(batches) == 6
        for step, batch in enumerate(batches):
            slots = [cutter(4 * step + i) for i in range(4)]
            np.testing.assert_array_equal(
                batch["patches"], np.concatenate([s.patches for s in slots])
            )
            assert batch["patches"].shape == (32, 32, 32, 3)
            assert batch["ink"].shape == (32, 128)
            assert batch["patches"].dtype == batch["ink"].dtype == np.uint8

    @pytest.mark.parametrize(
        "options", [{"threads": 0, "prefetch": 0}, {"threads": 3, "prefetch": 5, "cache_mb": 0.0}]
    )
    def test_threads_and_caches_do_not_change_them(self, mixed, options):
        assert_equal(read(source_of(mixed)), read(source_of(mixed), **options))

    @pytest.mark.parametrize("workers", [2, 3])
    def test_processes_do_not_change_them(self, mixed, workers):
        assert_equal(read(source_of(mixed)), read(source_of(mixed), workers=workers))

    @pytest.mark.parametrize("count", [2, 4])
    def test_processes_of_a_job_share_each_batch_without_overlap_or_gap(self, recipe, count):
        shares = [read(source_of(recipe), index=i, count=count) for i in range(count)]
        together = [
            {key: np.concatenate([part[key] for part in parts]) for key in ("patches", "ink")}
            for parts in zip(*shares, strict=True)
        ]
        assert_equal(together, read(source_of(recipe)))

    @pytest.mark.parametrize("start", [1, 5, 6])
    def test_it_goes_on_at_any_step(self, mixed, start):
        assert_equal(read(source_of(mixed), start), read(source_of(mixed))[start:])

    def test_more_steps_begin_with_the_same(self, recipe):
        assert_equal(read(source_of(recipe, 3)), read(source_of(recipe))[:3])

    def test_what_was_passed_over_is_told_once(self, mixed):
        lines = []
        source = source_of(mixed, log=lines.append)
        batches = read(source, workers=2)
        assert [len(batch["ink"]) for batch in batches] == [32] * 6
        assert [page for page, _ in source.skipped] == ["p02.png", "p05.png"]
        assert sorted(line[:17] for line in lines[:-1]) == [
            "skipped 'p02.png'",
            "skipped 'p05.png'",
        ]
        assert source.cut == 24
        assert lines[-1] == (
            f"24 slots were cut; {source.short} crops gave fewer than 8 patches and "
            "were completed from the next pages"
        )
        expected = [Cutter(mixed, 10**8)(slot).short for slot in range(24)]
        assert source.short == sum(expected) > 0

    def test_batches_that_do_not_fit_are_refused(self, recipe):
        with pytest.raises(UserError, match="batch of 20 is not a whole number of pages with 8"):
            source_of(recipe, global_batch_size=20)
        with pytest.raises(UserError, match="the 4 pages of a batch cannot be shared .* 3 proc"):
            read(source_of(recipe), count=3)
        with pytest.raises(ValueError, match="start_step 7"):
            read(source_of(recipe), start=7)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_closing_early_leaves_nothing(self, recipe, workers):
        threads, children = threading.active_count(), set(worker_ids())
        batches = source_of(recipe, 500).batches(0, 0, 1, loader(workers=workers))
        next(batches)
        assert len(set(worker_ids()) - children) == (workers if workers > 1 else 0)
        batches.close()
        assert set(worker_ids()) <= children
        deadline = time.monotonic() + 10
        while threading.active_count() > threads:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert cv2.getNumThreads() != 1 or os.cpu_count() == 1


def worker_ids():
    """Processes that this one started, from /proc."""
    children = []
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile, and its folder with it.
        with contextlib.suppress(FileNotFoundError):
            children += (task / "children").read_text().split()
    names = {i: Path(f"/proc/{i}/cmdline").read_bytes() for i in children}
    return [int(i) for i, name in names.items() if b"spawn_main" in name]


class TestWorkers:
    def test_they_load_neither_jax_nor_grain(self, recipe):
        assert "jax" in sys.modules
        before = set(worker_ids())
        with source_of(recipe, 500).batches(0, 0, 1, loader(workers=2)) as batches:
            next(batches)
            maps = [Path(f"/proc/{i}/maps").read_text() for i in set(worker_ids()) - before]
        assert len(maps) == 2
        for mapped in maps:
            assert "doxapy" in mapped
            assert "jaxlib" not in mapped
            assert "grain" not in mapped

    def test_importing_what_they_run_loads_no_jax(self):
        code = (
            "import sys, saghog_jax.input_pipeline.batches.crops\n"
            "import saghog_jax.input_pipeline.processes.servers\n"
            "print(sorted({'jax', 'jaxlib', 'grain', 'flax'} & sys.modules.keys()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"

    def test_a_killed_one_is_a_clear_error(self, recipe):
        before = set(worker_ids())
        with source_of(recipe, 500).batches(0, 0, 1, loader(workers=2)) as batches:
            next(batches)
            os.kill((set(worker_ids()) - before).pop(), signal.SIGKILL)
            with pytest.raises(UserError, match="a worker process was killed"):
                list(batches)

    def test_their_errors_arrive(self):
        servers = Servers(functools.partial, (operator.truediv, 6.0), 2)
        try:
            assert [servers.call(divisor) for divisor in (1.0, 2.0, 3.0)] == [6.0, 3.0, 2.0]
            with pytest.raises(ZeroDivisionError):
                servers.call(0.0)
            assert servers.call(4.0) == 1.5
        finally:
            servers.close()

    def test_they_end_with_their_parent(self, tmp_path):
        code = (
            "import os, time\n"
            "from saghog_jax.input_pipeline.processes.servers import Servers\n"
            "servers = Servers(__import__('functools').partial, (print,), 2)\n"
            "print(*[p.pid for p in servers._processes], flush=True)\n"
            "time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as parent:
            ids = [int(word) for word in parent.stdout.readline().split()]
            assert len(ids) == 2
            parent.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{i}").exists() for i in ids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    write_pages(folder / "pages", 6)
    (folder / "pages" / "p03.png").write_bytes(b"no image")
    return folder


class TestStage:
    def config(self, folder, **changes):
        small = {"crops.size": SIZE, "crops.patches_per_page": PER_SLOT, "data.split": "",
                 "loader.workers": 1, "model.depth": 1}  # fmt: skip
        return toy(pretrain_config.get_config("source=crops"), folder, **small | changes)

    def test_it_trains_without_a_store_and_goes_on_where_it_was_stopped(
        self, folder, tmp_path, monkeypatch, capsys
    ):
        # One page is skipped, and the exit status says so.
        assert len(run_stage(self.config(folder), tmp_path / "whole").skipped) == 1
        assert "skipped 'p03.png': not an image" in capsys.readouterr().out
        assert not (folder / "prepare").exists()
        join = PageCrops.join

        def stop(source, slots):
            if source.cut == 3 * 4:
                raise KeyboardInterrupt
            return join(source, slots)

        monkeypatch.setattr(PageCrops, "join", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage(self.config(folder), tmp_path / "stopped")
        monkeypatch.setattr(PageCrops, "join", join)
        assert (
            len(
                run_stage(
                    self.config(folder, **{"loader.workers": 2}), tmp_path / "stopped"
                ).skipped
            )
            == 1
        )
        assert "continuing from step 2" in capsys.readouterr().out
        digests = {
            params_digest(load_variables(tmp_path / run, ("mae",))[0])
            for run in ("whole", "stopped")
        }
        assert len(digests) == 1

    def test_the_argument_moves_grey_and_binary_to_the_crop(self):
        for arg in ("source=crops", "paper"):
            config = pretrain_config.get_config(arg)
            assert (config.source, config.crops.gray, config.crops.binarize) == ("crops", 0.2, 0.2)
            assert (config.augment.gray, config.augment.binarize) == (0, 0)
        for arg in (None, "paper,source=store"):
            config = pretrain_config.get_config(arg)
            assert (config.source, config.augment.gray, config.augment.binarize) == (
                "store", 0.2, 0.2
            )  # fmt: skip

    def test_unknown_and_unfitting_sources(self, folder, tmp_path):
        for changes, message in [
            ({"source": "pages"}, "unknown config.source 'pages', known: store, crops"),
            ({"global_batch_size": 40, "crops.patches_per_page": 7}, "whole number of pages"),
            ({"data.pages": "nowhere"}, "nowhere"),
            ({"data.cluster_regex": "()"}, "ready-cut patches"),
            ({"store.keep": "x"}, "unknown store.keep 'x'"),
        ]:
            with pytest.raises(UserError, match=message):
                run_stage(self.config(folder, **changes), tmp_path / "out")
