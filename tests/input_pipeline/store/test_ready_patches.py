"""Stores of ready-cut patches: arrays, labels, patches that are left out, repeatability."""

import json
import re

import cv2
import numpy as np
import pytest
from messages import message_of
from store_helpers import fingerprint

from saghog_jax.input_pipeline.batches.loader import batches
from saghog_jax.input_pipeline.batches.plans import m_per_class_plan
from saghog_jax.input_pipeline.pages import fingerprint as fingerprints
from saghog_jax.input_pipeline.store import ready_patches
from saghog_jax.input_pipeline.store import writer as store_writer
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.ready_patches import ensure_ready_store, ready_labels
from saghog_jax.verify import verify_store

# The published expressions for Historical-WI: 77/77_9-IMG_MAX_1005_3.png.
REGEXES = (r"(\d+)", r"\d+_(\d+)", r"\d+_\d+-IMG_MAX_(\d+)")
# cluster, writer, page, running number of the page.
PATCHES = [
    (77, 9, 1005, 0),
    (77, 9, 1005, 3),
    (8, 9, 1005, 1),
    (8, 10, 44, 0),
    (8, 10, 1005, 0),
    (123, 10, 1005, 2),
]


def _patch(seed, levels=(0, 255)):
    dark = np.random.default_rng(seed).random((32, 32)) < 0.3
    return np.where(dark, levels[0], levels[1]).astype(np.uint8)


def _write(folder, levels=(0, 255)):
    """The patches and, by path, their grey values."""
    images = {}
    for seed, (cluster, writer, page, number) in enumerate(PATCHES):
        name = f"{cluster}/{cluster}_{writer}-IMG_MAX_{page}_{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images[name] = _patch(seed, levels)
        cv2.imwrite(str(folder / name), images[name])
    return images


def _store(folder, root, *regexes, **changes):
    settings = {"workers": 1, "log": lambda line: None, **changes}
    return Store.open(ensure_ready_store(folder, *(regexes or REGEXES), root, **settings))


def test_names_tell_cluster_writer_and_page(tmp_path):
    images = _write(tmp_path / "in")
    store = _store(tmp_path / "in", tmp_path / "out")
    assert re.fullmatch(r"ready-[0-9a-f]{12}", store.path.name)
    assert [(p.writer, p.page, p.path, p.extra["n_patches"]) for p in store.manifest.pages] == [
        ("9", "1005", "77/77_9-IMG_MAX_1005_0.png", "3"),
        ("10", "44", "8/8_10-IMG_MAX_44_0.png", "1"),
        ("10", "1005", "123/123_10-IMG_MAX_1005_2.png", "2"),
    ]
    assert store.manifest.root == tmp_path / "in"
    assert store.index["page"].tolist() == [0, 0, 0, 1, 2, 2]
    assert set(store.index["x"]) == set(store.index["y"]) == {-1}
    # Patches of a page in the order of their paths, clusters numbered by their names' values.
    names = [
        *("77/77_9-IMG_MAX_1005_0.png", "77/77_9-IMG_MAX_1005_3.png", "8/8_9-IMG_MAX_1005_1.png"),
        "8/8_10-IMG_MAX_44_0.png",
        *("123/123_10-IMG_MAX_1005_2.png", "8/8_10-IMG_MAX_1005_0.png"),
    ]
    assert store.info["config"]["clusters"] == ["8", "77", "123"]
    labels = ready_labels(store)
    assert labels.dtype == np.int32
    assert labels.tolist() == [1, 1, 0, 0, 2, 0]
    batch = store.gather(np.arange(len(names)))
    for i, name in enumerate(names):
        grey = images[name]
        np.testing.assert_array_equal(batch["patches"][i], np.repeat(grey[:, :, None], 3, axis=2))
        ink = np.unpackbits(batch["ink"][i]).reshape(32, 32)
        np.testing.assert_array_equal(ink, grey == 0)
    assert not store.has_descriptors
    assert list(verify_store(store.path)) == []


def test_labels_serve_the_loader(tmp_path):
    _write(tmp_path / "in")
    store = _store(tmp_path / "in", tmp_path / "out")
    labels = ready_labels(store)
    plan = m_per_class_plan(labels, 2, 6, 3, seed=0)
    with batches(store, plan, 0, 0, 1, threads=0, prefetch=0, labels=labels) as source:
        for step, batch in enumerate(source):
            np.testing.assert_array_equal(batch["label"], labels[plan[step]])
            assert np.unique(batch["label"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("ink", "expected"), [("otsu", 0.3), ("binary", 0.0)])
def test_ink(tmp_path, ink, expected):
    # Otsu's threshold separates ink from paper at any contrast; a fixed threshold does not.
    _write(tmp_path / "in", levels=(170, 210))
    store = _store(tmp_path / "in", tmp_path / "out", ink=ink)
    share = np.unpackbits(store.gather(np.arange(len(store)))["ink"]).mean()
    assert share == pytest.approx(expected, abs=0.05)


def test_blank_patches(tmp_path):
    (tmp_path / "in").mkdir()
    for name, value in (("1_1_0", 255), ("1_1_1", 0)):
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), np.full((32, 32), value, np.uint8))
    for ink in ("otsu", "binary"):
        store = _store(tmp_path / "in", tmp_path / "out", "", "", r"_(\d)_", ink=ink)
        masks = np.unpackbits(store.gather(np.arange(2))["ink"], axis=1)
        assert masks.mean(axis=1).tolist() == [0, 1]


def test_without_clusters_and_writers(tmp_path):
    _write(tmp_path / "in")
    store = _store(tmp_path / "in", tmp_path / "out", "", "", r"MAX_(\d+)")
    assert [(p.writer, p.page) for p in store.manifest.pages] == [("", "44"), ("", "1005")]
    assert "has no labels; only a store of ready-cut patches" in message_of(ready_labels, store)
    assert list(verify_store(store.path)) == []


def test_a_patch_may_have_no_cluster_and_a_name_may_tell_the_split(tmp_path):
    for name in ("train/c1_p1_0", "train/p1_1", "test/c2_p1_0"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / f"{name}.png"), _patch(0))
    store = _store(
        tmp_path, tmp_path / "out", r"/(?:(?P<cluster>c\d)_)?p", "", r"(?P<split>\w+)/.*(p\d)_"
    )
    # The group without a name comes after that of the split.
    assert [p.split for p in store.manifest.pages] == ["test", "train"]
    assert ready_labels(store).tolist() == [1, 0, -1]


def test_patches_that_cannot_be_used_are_left_out_and_named(tmp_path):
    _write(tmp_path / "in")
    (tmp_path / "in/77/77_9-IMG_MAX_1005_3.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "in/8/8_9-IMG_MAX_1005_1.png"), np.zeros((32, 64), np.uint8))
    (tmp_path / "in/8/8_10-IMG_MAX_44_0.png").write_bytes(b"")
    lines = []
    store = _store(tmp_path / "in", tmp_path / "out", log=lines.append)
    first, second, third = (page.extra for page in store.manifest.pages)
    assert (first["n_patches"], first["status"]) == ("1", "ok")
    assert first["reason"].startswith("2 of 3 patches left out: 77/77_9-IMG_MAX_1005_3.png: not an")
    assert "8/8_9-IMG_MAX_1005_1.png: 64 x 32 pixels instead of 32 x 32" in first["reason"]
    assert (second["n_patches"], second["status"]) == ("0", "unreadable")
    assert store.skipped == [("8/8_10-IMG_MAX_44_0.png", second["reason"])]
    assert (third["n_patches"], third["reason"]) == ("2", "")
    assert ready_labels(store).tolist() == [1, 2, 0]
    assert len(lines) == 3
    assert lines[2].startswith("3 patches left out, such as: 2 of 3 patches left out: 77/")
    assert list(verify_store(store.path)) == []


def test_another_patch_size(tmp_path):
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"1_{number}.png"), _patch(number)[:16, :16])
    store = _store(tmp_path, tmp_path / "out", "", "", r"(\d)_", patch_size=16)
    assert store.gather(np.arange(2))["ink"].shape == (2, 32)
    message = message_of(_store, tmp_path, tmp_path / "out", "", "", r"(\d)_")
    assert "none of the 1 pages gave a patch" in message
    assert "16 x 16 pixels instead of 32 x 32" in message
    assert len(list((tmp_path / "out").glob("ready-*"))) == 1


def test_the_bytes_do_not_depend_on_workers_or_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(ready_patches, "_PAGES_PER_SHARD", 1)
    _write(tmp_path / "in")
    once = _store(tmp_path / "in", tmp_path / "a")
    assert len(once.info["shards"]) == 3
    expected = fingerprint(once.path)
    assert fingerprint(_store(tmp_path / "in", tmp_path / "b", workers=2).path) == expected

    written = []

    def write(shards, workspace, name, *rest):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(name)
        return ready_patches_write(shards, workspace, name, *rest)

    ready_patches_write = store_writer.write_shard
    monkeypatch.setattr(store_writer, "write_shard", write)
    message = message_of(_store, tmp_path / "in", tmp_path / "c")
    assert "cannot write" in message
    assert "No space left on device" in message
    (folder,) = (tmp_path / "c").glob("ready-*")
    (folder / "building-left").mkdir()
    written.pop()
    assert fingerprint(_store(tmp_path / "in", tmp_path / "c").path) == expected
    assert written == ["00000", "00002"]


def test_a_store_is_found_again_until_a_patch_changes(tmp_path):
    images = _write(tmp_path / "in")
    lines = []
    first = _store(tmp_path / "in", tmp_path / "out", log=lines.append)
    assert len(lines) == 2
    assert _store(tmp_path / "in", tmp_path / "out", log=lines.append).path == first.path
    assert len(lines) == 2
    others = {
        _store(tmp_path / "in", tmp_path / "out", **changes).path
        for changes in ({"ink": "binary"},)
    }
    others.add(_store(tmp_path / "in", tmp_path / "out", "", *REGEXES[1:]).path)
    name = next(iter(images))
    cv2.imwrite(str(tmp_path / "in" / name), 255 - images[name])
    others.add(_store(tmp_path / "in", tmp_path / "out").path)
    assert len(others | {first.path}) == 4


def test_contents_are_read_once(tmp_path, monkeypatch):
    _write(tmp_path / "in")
    monkeypatch.setattr(fingerprints, "SETTLED_NS", -(10**12))
    first = _store(tmp_path / "in", tmp_path / "out")
    assert len(json.loads((tmp_path / "out/ready_digests.json").read_text())) == 1
    monkeypatch.setattr(fingerprints, "_file_digest", lambda path: 1 / 0)
    assert _store(tmp_path / "in", tmp_path / "out").path == first.path


@pytest.mark.parametrize(
    ("regexes", "changes", "message"),
    [
        ((r"x(\d)", "", r"(\d)"), {}, "data.cluster_regex='x(\\\\d)' does not match 6 of 6 images"),
        (("[", "", r"(\d)"), {}, "data.cluster_regex='[' is not a regular expression"),
        (("", "", ""), {}, "data.page_regex is empty"),
        (REGEXES, {"ink": "sauvola"}, "unknown ink 'sauvola', known: otsu, binary"),
        (REGEXES, {"patch_size": 30}, "patch_size=30: its square must be a multiple of 8"),
    ],
)
def test_mistakes(tmp_path, regexes, changes, message):
    _write(tmp_path / "in")
    assert message in message_of(_store, tmp_path / "in", tmp_path / "out", *regexes, **changes)
    assert not (tmp_path / "out").exists()


def test_folders_without_patches(tmp_path):
    assert "no such folder" in message_of(_store, tmp_path / "x", tmp_path / "out")
    assert "holds no image" in message_of(_store, tmp_path, tmp_path / "out")
