"""Pretraining input cut on the fly: crops, slots that fill up, batches that nothing changes."""

import dataclasses
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
import doxapy
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from store_helpers import draw_page, sections, write_pages
from toy import toy

from configs import pretrain as pretrain_config
from input_pipeline import crops
from input_pipeline.crop_batches import PageCrops
from input_pipeline.crops import Cutter, Recipe, cut_crop, random_crop
from input_pipeline.errors import UserError
from input_pipeline.manifest import read_csv
from input_pipeline.patches import cut_page
from input_pipeline.servers import Servers
from saghog_jax.checkpoint import load_variables, params_digest
from saghog_jax.main import run_stage

ROOT = Path(__file__).parents[1]
SIZE, WANTED = 96, 8
BLANK = np.full((160, 200, 3), 235, np.uint8)


def written_page(number):
    """Page `number` of write_pages as it is read: OpenCV writes the other order of colours."""
    return draw_page(number)[..., ::-1]


def make_recipe(manifest_csv, **changes):
    data, store = sections(manifest_csv, "unused")
    section = ConfigDict({"size": SIZE, "patches_per_page": WANTED, "gray": 0.2, "binarize": 0.2})
    recipe = Recipe.from_config(read_csv(Path(manifest_csv)), data, store, section, seed=0)
    return dataclasses.replace(recipe, **changes)


def loader(workers=1, threads=2, prefetch=2, cache_mb=10.0):
    return ConfigDict(
        {"workers": workers, "threads": threads, "prefetch": prefetch, "cache_mb": cache_mb}
    )


def read(source, start=0, index=0, count=1, **options):
    with source.batches(start, index, count, loader(**options)) as batches:
        return list(batches)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(write_pages(tmp_path_factory.mktemp("crops"), 5))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Seven pages, of which two are blank and two cannot be read."""
    folder = tmp_path_factory.mktemp("mixed")
    manifest_csv = write_pages(folder, 7)
    for i in (1, 4):
        cv2.imwrite(str(folder / f"p{i:02d}.png"), BLANK)
    (folder / "p02.png").write_bytes(b"no image")
    (folder / "p05.png").write_bytes((folder / "p00.png").read_bytes()[:300])
    return make_recipe(manifest_csv)


def page_of(h, w):
    """A page whose pixels tell where they are."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y, x, np.full_like(x, 7)], -1).astype(np.uint8)


class TestRandomCrop:
    def test_it_is_a_window_of_the_page_anywhere(self):
        page = page_of(100, 120)
        rng = np.random.default_rng(0)
        corners = []
        for _ in range(400):
            crop = random_crop(page, 96, 255, rng)
            top, left = crop[0, 0, :2].astype(int)
            np.testing.assert_array_equal(crop, page[top : top + 96, left : left + 96])
            corners.append((top, left))
        # 5 x 25 places; 400 draws miss a given one with probability 4 %.
        assert {top for top, _ in corners} == set(range(5))
        assert {left for _, left in corners} == set(range(25))

    @pytest.mark.parametrize("fill", [0, 255])
    def test_a_small_page_lies_within_it(self, fill):
        page = page_of(90, 130)
        rng = np.random.default_rng(0)
        tops = set()
        for _ in range(60):
            crop = random_crop(page, 96, fill, rng)
            assert crop.shape == (96, 96, 3)
            inside = crop[..., 2] == 7
            rows = np.flatnonzero(inside.any(1))
            assert inside.sum() == 90 * 96
            assert (crop[~inside] == fill).all()
            tops.add(int(rows[0]))
            left = int(crop[rows[0], 0, 1])
            np.testing.assert_array_equal(crop[rows], page[:, left : left + 96])
        assert tops == set(range(7))

    def test_a_page_of_the_size_of_the_crop(self):
        page = page_of(96, 96)
        np.testing.assert_array_equal(random_crop(page, 96, 255, np.random.default_rng(0)), page)


class TestCutCrop:
    def crop(self, page, rng):
        return random_crop(page, SIZE, 255, rng)

    def test_it_is_a_page_cut_by_the_rule(self, recipe):
        page = draw_page(3)
        plain = dataclasses.replace(recipe, gray=0.0, binarize=0.0)
        every = dataclasses.replace(plain.rule, max_patches_per_page=-1)
        drawn = set()
        for seed in range(5):
            cut = cut_crop(page, 6, plain, np.random.default_rng(seed))
            whole = cut_page(self.crop(page, np.random.default_rng(seed)), every)
            places = list(zip(whole.x, whole.y))
            rows = [places.index(place) for place in zip(cut.x, cut.y)]
            assert len(set(rows)) == 6
            np.testing.assert_array_equal(cut.patches, whole.patches[rows])
            np.testing.assert_array_equal(cut.ink, whole.ink[rows])
            drawn.add(tuple(rows))
        assert len(drawn) == 5

    def test_gray_is_that_of_pillow(self, recipe):
        page = draw_page(3)
        grey = dataclasses.replace(recipe, gray=1.0, binarize=0.0)
        cut = cut_crop(page, 6, grey, np.random.default_rng(0))
        image = np.array(Image.fromarray(self.crop(page, np.random.default_rng(0))).convert("L"))
        image = np.pad(image, 16, constant_values=255)
        for x, y, patch in zip(cut.x, cut.y, cut.patches):
            np.testing.assert_array_equal(patch, image[y : y + 32, x : x + 32, None].repeat(3, 2))

    def test_binary_is_that_of_su_and_not_binarised_again(self, recipe):
        page = draw_page(3)
        binary = dataclasses.replace(recipe, gray=1.0, binarize=1.0)
        cut = cut_crop(page, 6, binary, np.random.default_rng(0))
        grey = np.array(Image.fromarray(self.crop(page, np.random.default_rng(0))).convert("L"))
        su = doxapy.Binarization(doxapy.Binarization.Algorithms.SU)
        su.initialize(grey)
        paper = np.empty_like(grey)
        su.to_binary(paper, {"window": 0, "minN": 0})
        paper = np.pad(paper, 16, constant_values=255)
        assert len(cut.x) == 6
        for x, y, patch, ink in zip(cut.x, cut.y, cut.patches, cut.ink):
            window = paper[y : y + 32, x : x + 32]
            np.testing.assert_array_equal(patch, window[..., None].repeat(3, 2))
            np.testing.assert_array_equal(np.unpackbits(ink).reshape(32, 32), window == 0)

    @pytest.mark.parametrize(("field", "probability"), [("gray", 0.3), ("binarize", 0.6)])
    def test_probabilities_are_obeyed(self, recipe, field, probability):
        page = draw_page(3)
        one = dataclasses.replace(recipe, **{"gray": 0.0, "binarize": 0.0, field: probability})
        cuts = [cut_crop(page, 2, one, np.random.default_rng(i)) for i in range(60)]
        colourless = [np.ptp(cut.patches.astype(int), axis=3).max() == 0 for cut in cuts]
        # Standard deviation at most sqrt(60 / 4) = 3.9.
        assert sum(colourless) == pytest.approx(60 * probability, abs=12)

    def test_blank_crops_have_no_patches(self, recipe):
        for value in (0, 235, 255):
            page = np.full((120, 120, 3), value, np.uint8)
            for binary in (0.0, 1.0):
                one = dataclasses.replace(recipe, binarize=binary)
                assert not len(cut_crop(page, 6, one, np.random.default_rng(0)).x)

    def test_the_border_of_the_rule_holds(self, recipe):
        page = draw_page(3, (60, 60))
        shares = {}
        for border in ("white", "black", "drop"):
            rule = dataclasses.replace(recipe.rule, border=border)
            one = dataclasses.replace(recipe, rule=rule, gray=0.0, binarize=0.0)
            cuts = [cut_crop(page, 8, one, np.random.default_rng(i)) for i in range(10)]
            patches = np.concatenate([cut.patches for cut in cuts])
            shares[border] = (patches == 0).all(-1).mean()
        assert shares["black"] > 0.05
        assert shares["white"] == shares["drop"] == 0


def same(a, b):
    return np.array_equal(a.patches, b.patches) and np.array_equal(a.ink, b.ink)


class TestCutter:
    def test_slots_are_pure_functions(self, recipe):
        first = [Cutter(recipe, 10**8)(slot) for slot in range(12)]
        cutter = Cutter(recipe, 0)
        for slot in np.random.default_rng(0).permutation(12):
            assert same(cutter(int(slot)), first[slot])
        other = Cutter(dataclasses.replace(recipe, seed=1), 10**8)
        assert not any(same(other(slot), first[slot]) for slot in range(12))
        # The same page in another epoch gives another crop.
        assert len({slot.patches.tobytes() for slot in first}) == 12

    def test_every_epoch_goes_through_every_page(self, recipe, monkeypatch):
        rows = [Cutter(recipe, 0)._row(slot) for slot in range(200)]
        epochs = np.reshape(rows, (40, 5))
        np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(5), (40, 1)))
        assert len({tuple(epoch) for epoch in epochs}) > 20

    def test_patches_are_of_the_page_in_the_plan(self, recipe):
        cutter = Cutter(recipe, 0)
        for slot in range(5):
            page = written_page(cutter._row(slot))
            rng = np.random.default_rng([0, slot, 0])
            cut = cut_crop(page, WANTED, recipe, rng)
            assert same(cutter(slot), cut)

    def test_following_pages_fill_up(self, mixed):
        cutter = Cutter(mixed, 10**8)
        short = unreadable = 0
        for slot in range(20):
            parts, attempt, bad = [], 0, set()
            while sum(len(part.x) for part in parts) < WANTED:
                row = cutter._row(slot + attempt)
                wanted = WANTED - sum(len(part.x) for part in parts)
                if row in (2, 5):
                    bad.add(row)
                else:
                    page = BLANK if row in (1, 4) else written_page(row)
                    rng = np.random.default_rng([0, slot, attempt])
                    parts.append(cut_crop(page, wanted, mixed, rng))
                attempt += 1
            found = cutter(slot)
            np.testing.assert_array_equal(found.patches, np.concatenate([p.patches for p in parts]))
            np.testing.assert_array_equal(found.ink, np.concatenate([p.ink for p in parts]))
            assert found.short == len(parts) - 1
            assert {row for row, _ in found.unreadable} == bad
            assert all("\n" not in reason for _, reason in found.unreadable)
            short, unreadable = short + found.short, unreadable + len(bad)
        assert short
        assert unreadable

    def test_pages_without_handwriting_are_given_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr(crops, "TRIES", 20)
        manifest_csv = write_pages(tmp_path, 2)
        for i in range(2):
            cv2.imwrite(str(tmp_path / f"p{i:02d}.png"), BLANK)
        message = "20 random crops in a row gave only 0 of 8 patches; are the pages blank"
        with pytest.raises(UserError, match=message):
            Cutter(make_recipe(manifest_csv), 0)(0)
        for i in range(2):
            (tmp_path / f"p{i:02d}.png").write_bytes(b"")
        message = "only 0 of 8 patches; 2 pages cannot be read, such as 'p0[01].png': an empty file"
        with pytest.raises(UserError, match=message):
            Cutter(make_recipe(manifest_csv), 0)(0)

    def test_pages_are_kept_within_bounds(self, recipe, monkeypatch):
        loads = []
        load_page = crops.load_page
        monkeypatch.setattr(
            crops, "load_page", lambda *a: (loads.append(a[0].name), load_page(*a))[1]
        )
        page_bytes = 160 * 200 * 3
        for pages, expected in [(5, 5), (2, None), (0, 25)]:
            loads.clear()
            cutter = Cutter(recipe, pages * page_bytes)
            for slot in range(25):
                cutter(slot)
                assert cutter._cached_bytes == len(cutter._cached) * page_bytes
                assert len(cutter._cached) <= pages
            if expected is None:
                assert 5 < len(loads) < 25
            else:
                # A crop that is filled up may ask for a page twice in a row.
                assert expected <= len(loads) <= expected + (0 if pages else 3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size": 16}, "crops.size=16 is smaller than store.patch_size=32"),
            ({"patches": 0}, "crops.patches_per_page=0 must be at least 1"),
            ({"gray": 1.5}, "crops.gray=1.5 is a probability"),
            ({"binarize": -1.0}, "crops.binarize=-1.0 is a probability"),
        ],
    )
    def test_fields_out_of_range(self, recipe, changes, message):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(recipe, **changes)

    @pytest.mark.parametrize(
        "changes", [{"size": 128}, {"gray": 1.0}, {"binarize": 1.0}, {"seed": 1}, {"patches": 7}]
    )
    def test_every_field_matters(self, recipe, changes):
        other = dataclasses.replace(recipe, **changes)
        assert not all(same(Cutter(recipe, 0)(slot), Cutter(other, 0)(slot)) for slot in range(4))


def source_of(recipe, total_steps=6, global_batch_size=4 * WANTED, log=lambda line: None):
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
            f"24 times a page's crop was cut; {source.short} crops gave fewer than 8 patches and "
            "were filled up from the pages that follow"
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
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    names = {i: Path(f"/proc/{i}/cmdline").read_bytes() for i in found}
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
            "import sys, input_pipeline.crops, input_pipeline.servers\n"
            "print(sorted({'jax', 'jaxlib', 'grain', 'flax', 'saghog_jax'} & sys.modules.keys()))"
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
            "from input_pipeline.servers import Servers\n"
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
        small = {"crops.size": SIZE, "crops.patches_per_page": WANTED, "data.split": "",
                 "loader.workers": 1, "model.depth": 1}  # fmt: skip
        return toy(pretrain_config.get_config("source=crops"), folder, **small | changes)

    def test_it_trains_without_a_store_and_goes_on_where_it_was_stopped(
        self, folder, tmp_path, monkeypatch, capsys
    ):
        # One page is skipped, and the exit status says so.
        assert run_stage(self.config(folder), tmp_path / "whole") == 1
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
        assert run_stage(self.config(folder, **{"loader.workers": 2}), tmp_path / "stopped") == 1
        assert "going on from step 2" in capsys.readouterr().out
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
