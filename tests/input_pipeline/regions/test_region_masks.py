"""Masks on disk: kept, reused, resumed; and their effect on stores, crops and embeddings."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from places import ROOT
from store_helpers import draw_page, sections, write_pages

from saghog_jax import finetune, prepare
from saghog_jax import regions as stage
from saghog_jax.configs import common
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.configs import prepare as prepare_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.configs import regions as regions_stage
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.batches.crop_batches import open_crops
from saghog_jax.input_pipeline.batches.crops import Cutter, Recipe, cut_crop, framed
from saghog_jax.input_pipeline.cutting.patches import Rule, cut_page
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages import fingerprint
from saghog_jax.input_pipeline.pages.images import load_page, resize_page
from saghog_jax.input_pipeline.pages.sources import CONTENTS_CACHE, load_manifest
from saghog_jax.input_pipeline.regions import backends, keypoint_filter, page_mask
from saghog_jax.input_pipeline.regions import masks as masks_module
from saghog_jax.input_pipeline.regions.backends import Backend, RegionResult
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_mask import PageMask, read_mask, resize_mask
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.next_command import next_command
from saghog_jax.training import finetuning, pretraining

PAGES = 5


def left_half(section):
    """A backend for tests: the left half of every page, nothing on pages that are all white."""

    def find(image, place):
        mask = np.zeros(image.shape[:2], bool)
        mask[:, : image.shape[1] // 2] = image.min() < 128
        return RegionResult(mask, (0.5,), {"box": place.box})

    return Backend("ink", 7, {"k": section.k}, find, weights={"encoder": "0" * 64})


@pytest.fixture
def halves(tmp_path, monkeypatch):
    """Pages, one of them blank and one no image, with their data and regions sections."""
    monkeypatch.setitem(backends._MAKERS, "ink", (__name__, "left_half"))
    pages = write_pages(tmp_path / "pages", PAGES)
    cv2.imwrite(str(pages.parent / "p02.png"), np.full((50, 70, 3), 240, np.uint8))
    (pages.parent / "p03.png").write_text("no image")
    data, _ = sections(pages, tmp_path / "stores")
    regions = regions_config("ink")
    regions.root, regions.workers = str(tmp_path / "regions"), 1
    return data, regions


def opened(data, regions):
    return open_masks(load_manifest(data), data.max_pixels, regions)


def silent(line):
    pass


def test_every_page_ends_with_a_status_and_a_reason(halves):
    data, regions = halves
    lines = []
    masks = opened(data, regions).ensure(lines.append)
    assert [mask.status for mask in masks] == ["ok", "ok", "empty", "unreadable", "ok"]
    assert [bool(mask.reason) for mask in masks] == [False, False, True, True, False]
    assert "3 pages ok, 1 pages empty, 1 pages unreadable" in "\n".join(lines)
    mask = read_mask(masks[0].file)
    assert mask.shape == (160, 200)
    assert mask[:, :100].all()
    assert not mask[:, 100:].any()
    info = json.loads(masks[0].file.with_suffix(".json").read_text())
    assert info["page_id"] == "p00.png"
    assert (info["backend"], info["version"], info["parameters"]) == ("ink", 7, {"k": 0.15})
    assert info["weights"] == {"encoder": "0" * 64}
    assert (info["share"], info["scores"], info["size"]) == (0.5, [0.5], [200, 160])


def test_stores_have_patches_in_the_mask_alone(halves, tmp_path):
    data, regions = halves
    _, section = sections(tmp_path / "pages", tmp_path / "stores")
    section.max_patches_per_page = -1
    whole = Store.open(ensure_store(data, section, silent))
    before = {p.name: p.read_bytes() for p in (tmp_path / "pages").iterdir()}
    store = Store.open(ensure_store(data, section, silent, regions=regions))
    assert store.path != whole.path
    inside = whole.index["x"] < 100
    for key in ("page", "x", "y"):
        np.testing.assert_array_equal(store.index[key], whole.index[key][inside])
    np.testing.assert_array_equal(
        store.gather(np.arange(len(store)))["patches"],
        whole.gather(np.flatnonzero(inside))["patches"],
    )
    statuses = [page.extra["status"] for page in store.manifest.pages]
    assert statuses == ["ok", "ok", "empty", "unreadable", "ok"]
    # The page files are never changed.
    assert {p.name: p.read_bytes() for p in (tmp_path / "pages").iterdir()} == before
    # With `none` the store has the same name as a store without regions.
    none = regions_config()
    assert ensure_store(data, section, silent, regions=none) == whole.path


def test_the_content_of_a_page_is_read_once_for_its_store_and_its_mask(
    halves, tmp_path, monkeypatch
):
    data, regions = halves
    _, section = sections(tmp_path / "pages", tmp_path / "stores")
    names = []
    digest = fingerprint.hashlib.file_digest

    def counted(file, algorithm):
        names.append(os.path.basename(file.name))
        return digest(file, algorithm)

    monkeypatch.setattr(fingerprint.hashlib, "file_digest", counted)
    store = ensure_store(data, section, silent, regions=regions)
    assert sorted(names) == [f"p{i:02d}.png" for i in range(PAGES)]
    # One cache serves both. Files that changed before its clock's resolution are not read again.
    monkeypatch.setattr(fingerprint, "SETTLED_NS", -(10**12))
    for _ in range(2):
        names.clear()
        assert ensure_store(data, section, silent, regions=regions) == store
    assert names == []
    assert len(list(tmp_path.rglob(CONTENTS_CACHE))) == 1
    # A lost cache costs time alone: store and masks have the same names.
    masks = [mask.file for mask in opened(data, regions).ensure(silent)]
    next(tmp_path.rglob(CONTENTS_CACHE)).unlink()
    assert ensure_store(data, section, silent, regions=regions) == store
    assert len(names) == PAGES
    assert [mask.file for mask in opened(data, regions).ensure(silent)] == masks


def test_derived_manifests_share_the_contents_of_their_pages(halves, monkeypatch):
    data, regions = halves
    manifest = load_manifest(data)
    contents = manifest.contents()
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    some = dataclasses.replace(manifest, pages=manifest.pages[:2])
    assert some.contents() == {name: contents[name] for name in ("p00.png", "p01.png")}
    assert manifest.at_scales([1.0, 2.0]).contents() == contents
    assert len(open_masks(manifest, 10**6, regions).digests) == PAGES


def test_masks_are_made_once(halves, monkeypatch):
    data, regions = halves
    first = opened(data, regions).ensure(silent)
    stamps = [mask.file.stat().st_mtime_ns for mask in first if mask.file]
    rows = []
    make = page_mask._find
    monkeypatch.setattr(
        page_mask, "_find", lambda job, *a: (rows.append(job.row), make(job, *a))[1]
    )
    again = opened(data, regions).ensure(silent)
    assert again == first
    assert [mask.file.stat().st_mtime_ns for mask in again if mask.file] == stamps
    assert rows == []
    # A page that was edited is another page; other parameters are other masks.
    page = load_page(load_manifest(data).root / "p01.png", None, 10**6)
    cv2.imwrite(str(load_manifest(data).root / "p01.png"), page[:100])
    opened(data, regions).ensure(silent)
    assert rows == [1]
    regions.ink.k = 0.3
    assert opened(data, regions).ensure(silent)[0].file != first[0].file
    assert sorted(rows[1:]) == [0, 1, 2, 4]


def test_unknown_backend_and_values(halves):
    data, regions = halves
    regions.backend = "inks"
    with pytest.raises(UserError, match="unknown regions.backend 'inks', known: none, ink"):
        opened(data, regions)
    regions.backend = "xml"
    with pytest.raises(UserError, match="needs its section .*configs/prepare.py:regions=xml"):
        opened(data, regions)
    regions.backend = "none"
    assert opened(data, regions) is None
    regions.min_keypoints = 3
    with pytest.raises(UserError, match="regions.min_keypoints=3 counts keypoints in regions"):
        opened(data, regions)


class TestKeypoints:
    def test_they_are_counted_in_the_mask(self):
        regions = regions_config("ink")
        page = draw_page(0)
        everywhere, half = np.ones(page.shape[:2], bool), np.zeros(page.shape[:2], bool)
        half[:, :100] = True
        whole = keypoint_filter.count(page, everywhere, regions)
        left = keypoint_filter.count(page, half, regions)
        right = keypoint_filter.count(page, ~half, regions)
        assert whole == left + right
        assert min(left, right) > 20
        regions.keypoints_on = "masked"
        # A page that is all handwriting has no border of a mask, which would have keypoints.
        assert keypoint_filter.count(page, everywhere, regions) == whole
        assert keypoint_filter.count(page, half, regions) != left
        frame = np.zeros(page.shape[:2], bool)
        frame[40:60, 30:170] = True
        # One of them lies just outside of the mask.
        masked = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY) * frame
        published = cv2.SIFT_create().detect(cv2.Canny(masked, 100, 200), None)
        assert keypoint_filter.count(page, frame, regions) == len(published)
        blank = np.full_like(page, 230)
        assert keypoint_filter.count(blank, frame, regions) > 0
        regions.keypoints_on = "page"
        assert keypoint_filter.count(blank, frame, regions) == 0

    def test_at_the_stated_resolution(self):
        regions = regions_config("ink")
        page = cv2.resize(draw_page(0), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        mask = np.ones(page.shape[:2], bool)
        regions.keypoints_side = 0
        full = keypoint_filter.count(page, mask, regions)
        regions.keypoints_side = 5000
        assert keypoint_filter.count(page, mask, regions) == full
        regions.keypoints_side = 200
        assert keypoint_filter.count(page, mask, regions) != full

    def test_pages_with_too_few_are_left_out(self, halves, monkeypatch):
        data, regions = halves
        first = opened(data, regions).ensure(silent)
        counts = []
        regions.min_keypoints = 1
        masks = opened(data, regions).ensure(silent)
        assert [mask.status for mask in masks] == [mask.status for mask in first]
        for row in (0, 1, 4):
            # Masks of an earlier run are kept; their numbers of keypoints are added.
            assert masks[row].file == first[row].file
            counts.append(masks[row].info()["keypoints"]["page@1600"])
        monkeypatch.setattr(keypoint_filter, "count", lambda *_: pytest.fail("counted again"))
        regions.min_keypoints = sorted(counts)[1]
        masks = opened(data, regions).ensure(silent)
        few = [masks[row] for row in (0, 1, 4) if masks[row].status == "too few keypoints"]
        assert len(few) == 1
        assert few[0].reason == (
            f"{min(counts)} keypoints in the mask are fewer than regions.min_keypoints="
            f"{regions.min_keypoints}"
        )
        assert open_masks(load_manifest(data), 10**6, regions).identity["min_keypoints"] > 1

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [("keypoints_on", "mask", "unknown regions.keypoints_on 'mask', known: page, masked"),
         ("keypoints_side", -1, "regions.keypoints_side=-1 must not be negative"),
         ("min_keypoints", -1, "regions.min_keypoints=-1 must not be negative")],
    )  # fmt: skip
    def test_values_out_of_range(self, halves, field, value, message):
        data, regions = halves
        regions[field] = value
        with pytest.raises(UserError, match=message):
            opened(data, regions)


class TestUsers:
    """Everything that cuts pages uses their masks."""

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_embed_streams_cuts_within_masks(self, halves, scale):
        data, regions = halves
        manifest = load_manifest(data)
        masks = opened(data, regions).ensure(silent)
        store = common.store_config("eval")
        store.scale, store.max_patches_per_page = scale, -1
        rule = Rule.from_config(store)
        cuts = [c for (c,) in stream_cuts(manifest.root, manifest.pages, rule, 10**6, 1, masks)]
        assert cuts[2].startswith("empty: no writing: 0 pixels lie in strokes")
        assert cuts[3].startswith("unreadable: ")
        for row in (0, 1, 4):
            page = load_page(manifest.root / manifest.pages[row].path, None, 10**6, scale)
            whole = cut_page(page, rule)
            inside = whole.x < 100 * scale
            assert 0 < inside.sum() < len(inside)
            np.testing.assert_array_equal(cuts[row].x, whole.x[inside])

    def test_crops_lie_around_the_handwriting(self):
        page, mask = np.arange(40 * 60).reshape(40, 60), np.zeros((40, 60), bool)
        mask[5:15, 30:58] = True
        part, inside = framed(page, mask, 20)
        np.testing.assert_array_equal(part, page[0:20, 30:58])
        np.testing.assert_array_equal(inside, mask[0:20, 30:58])
        assert framed(page, mask, 100)[0].shape == (40, 60)
        assert framed(page, np.zeros_like(mask), 10)[0].shape == (40, 60)

    def test_a_crop_has_keypoints_in_its_mask_alone(self):
        config = pretrain_config.get_config("paper")
        recipe = Recipe.from_config(None, config.data, config.store, config.crops, 0)
        recipe = dataclasses.replace(recipe, size=400, gray=0.0, binarize=0.0)
        page = draw_page(0)
        mask = np.zeros(page.shape[:2], bool)
        mask[:, :100] = True

        def cut(mask):
            return cut_crop(page, 10**6, recipe, np.random.default_rng(3), mask)

        def records(cut):
            return {p.tobytes() for p in cut.patches}

        left, right, whole = cut(mask), cut(~mask), cut(None)
        assert min(len(left.x), len(right.x)) > 5
        assert len(left.x) + len(right.x) == len(whole.x)
        assert records(left) | records(right) == records(whole)

    def test_pretraining_from_crops_uses_masks(self, halves):
        data, regions = halves
        config = pretrain_config.get_config("source=crops")
        config.data, config.regions = data, regions
        config.crops.size, config.crops.patches_per_page = 64, 4
        config.crops.gray = config.crops.binarize = 0.0
        config.global_batch_size = 8
        source = open_crops(config, silent)
        recipe = source._recipe
        assert [mask.status for mask in recipe.masks][2:4] == ["empty", "unreadable"]
        slot = Cutter(recipe, 10**7)(0)
        assert len(slot.patches) == 4
        reasons = dict(pair for n in range(5) for pair in Cutter(recipe, 0)(n).unreadable)
        assert reasons[2].startswith("empty: no writing: 0 pixels lie in strokes")
        # All of the page that can be cropped is its left half.
        decoded = Cutter(recipe, 10**7)._page(0)
        assert decoded.image.shape == (160, 100, 3)
        assert decoded.nbytes == 160 * 100 * 4

    def test_a_damaged_mask_is_a_reason(self, halves):
        data, regions = halves
        masks = opened(data, regions).ensure(silent)
        masks[0].file.write_bytes(b"no PNG")
        with pytest.raises(PageError, match="is damaged or missing .*delete its .json file"):
            masks[0].read((160, 200))

    def test_masks_and_xml_end_in_the_store(self, halves, tmp_path):
        """An edited XML file is another mask and another store."""
        data, _ = halves
        _, section = sections(tmp_path / "pages", tmp_path / "stores")
        regions = regions_config("xml")
        regions.root, regions.workers = str(tmp_path / "regions"), 1
        regions.xml.folder = str(tmp_path / "xml")
        (tmp_path / "xml").mkdir()

        def write(right):
            (tmp_path / "xml" / "p00.xml").write_text(
                '<PcGts><Page imageWidth="200" imageHeight="160"><TextRegion><Coords points='
                f'"0,0 {right},0 {right},159 0,159"/></TextRegion></Page></PcGts>'
            )

        def build():
            return Store.open(ensure_store(data, section, silent, regions=regions))

        write(80)
        first = build()
        assert first.index["x"].max() <= 80
        statuses = [page.extra["status"] for page in first.manifest.pages]
        assert statuses == ["ok", "error", "empty", "unreadable", "error"]
        assert "no PAGE or ALTO file" in first.manifest.pages[1].extra["reason"]
        assert first.info["counts"]["error"] == 2
        write(150)
        os.utime(tmp_path / "xml" / "p00.xml", (1e9, 1e9))
        second = build()
        assert second.path != first.path
        assert second.index["x"].max() > 80


class TestStage:
    def run(self, halves, tmp_path, **changes):
        data, regions = halves
        config = regions_stage.get_config()
        config.data, config.regions = data, regions
        config.update(changes)
        result = stage.run(config, tmp_path / "out")
        with (tmp_path / "out" / "pages.csv").open(newline="") as file:
            return result, list(csv.DictReader(file)), (tmp_path / "out/report.html").read_text()

    def test_table_and_contact_sheet(self, halves, tmp_path, capsys):
        page = tmp_path / "pages" / "p00.png"
        page.rename(page.with_name("<b>&.png"))
        manifest = tmp_path / "pages" / "manifest.csv"
        manifest.write_text(manifest.read_text().replace("p00.png", "<b>&.png"))
        result, table, sheet = self.run(halves, tmp_path)
        assert len(result.skipped) == 2
        assert [row["status"] for row in table] == ["ok", "ok", "empty", "unreadable", "ok"]
        assert [row["share"] for row in table] == ["0.5", "0.5", "0.0", "", "0.5"]
        assert sheet.count("<figure") == 5
        assert sheet.count('<figure class="failed"') == 2
        assert sheet.index("p02.png") < sheet.index("p01.png")
        assert sheet.count('src="data:image/webp') == 4
        assert "&lt;b&gt;&amp;.png" in sheet
        assert "<b>&.png" not in sheet
        assert "handwriting on 50% of the median page" in sheet
        assert '<meta name="viewport" content="width=device-width' in sheet
        assert "contact sheet" in capsys.readouterr().out
        # For so few pages the recipe of small collections is recommended.
        (following,) = result.following
        assert (following.stage, following.variant) == ("pretrain", "small")
        assert following.sections["regions"].backend == "ink"
        assert following.fields == {"store.scale": 1.0}
        result, _, _ = self.run(halves, tmp_path, store={"scale": 2.75})
        command = next_command(result.following[0], result.workdir)
        assert "configs/pretrain.py:small,regions=ink " in command
        assert " --config.store.scale=2.75 " in command
        assert command.endswith(f"--workdir={tmp_path / 'pretrain'}")

    def test_a_page_turned_in_place_has_a_new_mask(self, halves, tmp_path, monkeypatch):
        """One byte changes, as `exiftool -P -n -Orientation=6` does it; size and time are kept."""
        monkeypatch.setattr(fingerprint, "SETTLED_NS", -(10**12))
        page, exif = tmp_path / "pages" / "p00.png", Image.Exif()
        exif[ExifTags.Base.Orientation] = 1
        Image.fromarray(draw_page(0)).save(page, "JPEG", exif=exif)
        first, table, _ = self.run(halves, tmp_path)
        before = page.stat()
        data = bytearray(page.read_bytes())
        data[data.index(b"\x01\x12\x00\x03\x00\x00\x00\x01") + 9] = 6
        time.sleep(0.02)  # Longer than the tick of the file system's clock.
        page.write_bytes(data)
        os.utime(page, ns=(before.st_atime_ns, before.st_mtime_ns))
        _, turned, sheet = self.run(halves, tmp_path)
        assert sheet.count("<figure") == PAGES
        assert turned[0]["mask"] != table[0]["mask"]
        assert turned[1:] == table[1:]
        mask = read_mask(first.paths["masks"] / turned[0]["mask"])
        assert mask.shape == (200, 160)
        assert mask[:, :80].all()
        assert not mask[:, 80:].any()

    def test_the_sheet_names_a_page_with_the_mask_of_another(self, halves, tmp_path, monkeypatch):
        ensure = masks_module.RegionMasks.ensure

        def turned_meanwhile(self):
            masks = ensure(self)
            cv2.imwrite(str(tmp_path / "pages" / "p01.png"), np.rot90(draw_page(1)))
            return masks

        monkeypatch.setattr(masks_module.RegionMasks, "ensure", turned_meanwhile)
        _, _, sheet = self.run(halves, tmp_path)
        assert sheet.count('<figure class="failed"') == 3
        assert "the mask has 200 x 160 pixels; the page has other proportions, 160 x 200" in sheet

    def test_fields_of_the_sheet(self, halves, tmp_path):
        _, _, sheet = self.run(halves, tmp_path)
        _, _, small = self.run(halves, tmp_path, sheet_side=20)
        assert len(small) < len(sheet)
        _, _, short = self.run(halves, tmp_path, sheet_pages=3)
        assert short.count("<figure") == 3

    def test_nothing_to_find(self, halves, tmp_path):
        data, regions = halves
        regions.backend = "none"
        with pytest.raises(UserError, match="regions.backend is 'none'"):
            self.run((data, regions), tmp_path)


def test_a_device_is_used_in_this_process_with_one_backend(halves, monkeypatch):
    data, regions = halves
    sections_used, calls = [], []

    def on_device(section):
        sections_used.append(section)

        def find(image, place):
            calls.append(os.getpid())
            return left_half(section).find(image, place)

        return dataclasses.replace(left_half(section), find=find, on_device=True)

    expected = opened(data, regions).ensure(silent)
    contents = [mask.file.read_bytes() for mask in expected if mask.file]
    monkeypatch.setattr(sys.modules[__name__], "left_half_on_device", on_device, raising=False)
    monkeypatch.setitem(backends._MAKERS, "ink", (__name__, "left_half_on_device"))
    regions.root += "-device"
    regions.workers = 3
    masks = opened(data, regions).ensure(silent)
    assert [mask.status for mask in masks] == [mask.status for mask in expected]
    assert [mask.file.read_bytes() for mask in masks if mask.file] == contents
    # Of five pages one is blank and one is no image.
    assert calls == [os.getpid()] * 3
    assert len(sections_used) == 1


def test_a_fault_of_a_backend_is_none_of_the_page(halves, monkeypatch):
    data, regions = halves

    def broken(section):
        def find(image, place):
            raise ZeroDivisionError

        return dataclasses.replace(left_half(section), find=find)

    monkeypatch.setattr(sys.modules[__name__], "broken", broken, raising=False)
    monkeypatch.setitem(backends._MAKERS, "ink", (__name__, "broken"))
    with pytest.raises(ZeroDivisionError) as caught:
        opened(data, regions).ensure(silent)
    assert "while looking for handwriting on page p0" in caught.value.__notes__[0]


KILLED = """
import sys
from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions import masks as masks_module
from saghog_jax.input_pipeline.regions.masks import open_masks
data, regions = common.data_config(""), regions_config("ink")
data.pages, regions.root, regions.workers = sys.argv[1], sys.argv[2], 2
if __name__ == "__main__":
    open_masks(load_manifest(data), 10**8, regions).ensure(lambda line: None)
"""


def test_killed_and_started_again(tmp_path):
    pages = write_pages(tmp_path / "pages", 3)
    # Large pages, so that there is time to be killed in between.
    for i in range(24):
        big = cv2.resize(draw_page(i), (1600, 1280), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(pages.parent / f"q{i:02d}.png"), big)
    data, regions = common.data_config(""), regions_config("ink")
    pages.unlink()
    data.pages, regions.root, regions.workers = str(pages.parent), str(tmp_path / "whole"), 1
    expected = opened(data, regions).ensure(silent)
    (tmp_path / "killed.py").write_text(KILLED)
    words = [sys.executable, str(tmp_path / "killed.py"), str(pages.parent), str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    while len(list((tmp_path / "cut").glob("*/*.json"))) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*/*.json")}
    assert len(done) < 27
    regions.root = str(tmp_path / "cut")
    resumed = opened(data, regions).ensure(silent)
    assert [mask.status for mask in resumed] == [mask.status for mask in expected]
    for a, b in zip(expected, resumed, strict=True):
        assert a.file.read_bytes() == b.file.read_bytes()
        assert a.info() == b.info()
        if b.file.with_suffix(".json").name in done:
            kept = b.file.with_suffix(".json").stat().st_mtime_ns
            assert kept == done[b.file.with_suffix(".json").name]


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="the extra [beam] is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_beam_makes_the_same_masks(tmp_path):
    pages = write_pages(tmp_path / "pages", 4)
    (pages.parent / "p02.png").write_text("no image")
    data, regions = common.data_config(""), regions_config("ink")
    data.pages, regions.root, regions.workers = str(pages), str(tmp_path / "pool"), 1
    pool = opened(data, regions).ensure(silent)
    regions.root = str(tmp_path / "beam")
    beam = opened(data, regions).ensure(silent, "--runner=DirectRunner")
    assert [mask[:2] for mask in beam] == [mask[:2] for mask in pool]
    assert [m.info() for m in beam] == [m.info() for m in pool]


def test_read_scales_the_mask_to_the_page(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 12:] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    page_mask_file = PageMask("ok", "", tmp_path / "m.png")
    np.testing.assert_array_equal(page_mask_file.read((20, 30)), mask > 0)
    half = page_mask_file.read((40, 60))
    np.testing.assert_array_equal(half, np.repeat(np.repeat(mask > 0, 2, 0), 2, 1))


@pytest.mark.parametrize("shape", [(20, 20), (30, 20), (20, 33), (2, 10)])
def test_a_mask_is_not_stretched_over_another_page(shape):
    with pytest.raises(PageError, match="the mask has 30 x 20 pixels; the page has other prop"):
        resize_mask(np.ones((20, 30), bool), shape)


def test_a_mask_fits_its_page_at_every_scale():
    for size in ((1, 1), (3, 1000), (160, 320), (1201, 799)):
        page = np.zeros((*size, 3), np.uint8)
        for scale in np.linspace(0.34, 2.5, 61):
            try:
                shape = resize_page(page, scale, 10**9).shape[:2]
            except PageError:
                continue
            assert resize_mask(np.ones(size, bool), shape).shape == shape


class TestDryRun:
    def look(self, halves, tmp_path, capsys):
        data, regions = halves
        config = prepare_config.get_config("only=pretrain")
        config.data, config.regions, config.dry_run = data, regions, True
        config.stores.pretrain = sections(tmp_path / "pages", tmp_path / "stores")[1]
        config.stores.pretrain.max_patches_per_page = -1
        result = prepare.run(config, tmp_path)
        assert not (tmp_path / "stores").exists()
        return result, capsys.readouterr().out

    def test_samples_are_cut_within_masks_that_are_not_written(self, halves, tmp_path, capsys):
        result, out = self.look(halves, tmp_path, capsys)
        assert len(result.skipped) == 2
        assert "p02.png: no writing: 0 pixels lie in strokes" in out
        assert "handwriting covers 50% to 50% of a sample page (median 50%)" in out
        assert [following.stage for following in result.following] == ["pretrain"]
        assert not (tmp_path / "regions").exists()
        halves[1].backend = "none"
        result, whole = self.look(halves, tmp_path, capsys)
        assert len(result.skipped) == 2
        assert "handwriting covers" not in whole
        assert [following.stage for following in result.following] == ["regions"]

        def patches(text):
            return int(re.search(r"about ([\d,]+), ", text).group(1).replace(",", ""))

        assert patches(out) < patches(whole)

    def test_what_needs_a_device_is_read_not_made(self, halves, tmp_path, capsys, monkeypatch):
        def on_device(section):
            return dataclasses.replace(left_half(section), on_device=True)

        monkeypatch.setattr(sys.modules[__name__], "on_device", on_device, raising=False)
        monkeypatch.setitem(backends._MAKERS, "ink", (__name__, "on_device"))
        assert "regions of handwriting are not known yet" in self.look(halves, tmp_path, capsys)[1]
        opened(*halves).ensure(silent)
        assert "handwriting covers 50% to 50%" in self.look(halves, tmp_path, capsys)[1]


class TestTraining:
    def test_pretraining_opens_a_store_within_masks(self, halves, tmp_path):
        data, regions = halves
        config = pretrain_config.get_config()
        config.data, config.regions = data, regions
        config.store = sections(tmp_path / "pages", tmp_path / "stores")[1]
        assert pretraining.open_source(config).index["x"].max() < 100
        config.regions.backend = "none"
        assert pretraining.open_source(config).index["x"].max() > 100

    def test_finetuning_too(self, halves, tmp_path, monkeypatch):
        data, regions = halves
        config = finetune_config.get_config("cpu,encoder=scratch")
        config.data, config.regions = data, regions
        calls = []

        def open_store(*args, regions):
            calls.append((*args, regions))
            raise UserError("far enough")

        monkeypatch.setattr(finetuning, "open_store", open_store)
        with pytest.raises(UserError, match="far enough"):
            finetune.run(config, tmp_path / "run")
        assert calls == [(config.data, config.store, config.regions)]
