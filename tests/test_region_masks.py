"""Masks on disk: kept, reused, resumed; and what they do to stores, crops and embeddings."""

import json

import cv2
import numpy as np
import pytest
from store_helpers import sections, write_pages

from configs import common
from input_pipeline.build import ensure_store
from input_pipeline.errors import UserError
from input_pipeline.images import load_page
from input_pipeline.manifest import load_manifest
from input_pipeline.regions import backends, masks
from input_pipeline.regions.backends import Backend, RegionResult
from input_pipeline.regions.masks import open_masks, read_mask
from input_pipeline.store import Store

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
    regions = common.regions_config("ink")
    regions.root, regions.workers = str(tmp_path / "regions"), 1
    return data, regions


def opened(data, regions):
    return open_masks(load_manifest(data), data.max_pixels, regions)


def silent(line):
    pass


def test_every_page_ends_with_a_status_and_a_reason(halves):
    data, regions = halves
    lines = []
    found = opened(data, regions).ensure(lines.append)
    assert [mask.status for mask in found] == ["ok", "ok", "empty", "unreadable", "ok"]
    assert [bool(mask.reason) for mask in found] == [False, False, True, True, False]
    assert "3 pages ok, 1 pages empty, 1 pages unreadable" in "\n".join(lines)
    mask = read_mask(found[0].file)
    assert mask.shape == (160, 200)
    assert mask[:, :100].all()
    assert not mask[:, 100:].any()
    info = json.loads(found[0].file.with_suffix(".json").read_text())
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
    # The pages themselves are never written to.
    assert {p.name: p.read_bytes() for p in (tmp_path / "pages").iterdir()} == before
    # `none` is a store without regions, to the byte of its name.
    none = common.regions_config()
    assert ensure_store(data, section, silent, regions=none) == whole.path


def test_masks_are_made_once(halves, monkeypatch):
    data, regions = halves
    first = opened(data, regions).ensure(silent)
    stamps = [mask.file.stat().st_mtime_ns for mask in first if mask.file]
    found = []
    make = masks._find
    monkeypatch.setattr(masks, "_find", lambda job, *a: (found.append(job.row), make(job, *a))[1])
    again = opened(data, regions).ensure(silent)
    assert again == first
    assert [mask.file.stat().st_mtime_ns for mask in again if mask.file] == stamps
    assert found == []
    # A page that was edited is another page; other parameters are other masks.
    page = load_page(load_manifest(data).root / "p01.png", None, 10**6)
    cv2.imwrite(str(load_manifest(data).root / "p01.png"), page[:100])
    opened(data, regions).ensure(silent)
    assert found == [1]
    regions.ink.k = 0.3
    assert opened(data, regions).ensure(silent)[0].file != first[0].file
    assert sorted(found[1:]) == [0, 1, 2, 4]


def test_unknown_backend_and_values(halves):
    data, regions = halves
    regions.backend = "inks"
    with pytest.raises(UserError, match="unknown regions.backend 'inks', known: none, ink"):
        opened(data, regions)
    regions.backend = "none"
    assert opened(data, regions) is None
    regions.min_keypoints = 3
    with pytest.raises(UserError, match="regions.min_keypoints=3 counts keypoints in regions"):
        opened(data, regions)
