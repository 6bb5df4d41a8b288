"""Upright SIFT of patches: against OpenCV, against loops, and its words."""

import cv2
import numpy as np
import pytest
from store_helpers import draw_page, make_store

from saghog_jax.embedding import sift
from saghog_jax.embedding.describers import PatchBatch, sift_describer
from saghog_jax.embedding.sift import ensure_words, load_words, nearest_word, upright
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.labels.pseudo_labels import root_sift


def ink_of(seed, n=60, side=32):
    """Ink around places of a drawn page: [n, s, s] of zeros and ones; the page, and the places."""
    page = (draw_page(seed, (300, 400))[:, :, 0] < 128).astype(np.uint8)
    rng = np.random.default_rng(seed)
    y, x = np.nonzero(page[40:-40, 40:-40])
    chosen = rng.choice(len(y), n, replace=False)
    places = np.stack([x[chosen], y[chosen]], 1) + 40
    half = side // 2
    patches = [page[y - half : y + half, x - half : x + half] for x, y in places]
    return np.stack(patches), page, places


def test_it_is_nearly_what_opencv_makes_of_the_page():
    """OpenCV blurs the enlarged page, and looks a little beyond the 32 pixels."""
    ink, page, places = ink_of(0)
    keypoints = [cv2.KeyPoint(float(x), float(y), 32 / 6, 0.0, 1.0, 0) for x, y in places]
    _, theirs = cv2.SIFT_create().compute((1 - page) * 255, keypoints)
    ours = np.asarray(upright(1.0 - ink[..., None].astype(np.float32)))
    cosines = (ours * root_sift(theirs)).sum(1)
    assert np.median(cosines) > 0.93
    assert cosines.min() > 0.8
    # A patch is like its own descriptor of OpenCV, and like no other's.
    assert ((ours @ root_sift(theirs).T).argmax(1) == np.arange(len(ours))).mean() > 0.95


def by_loops(ink):
    """The definition, pixel by pixel."""
    s = len(ink)
    reach = 7
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 1.6**2))
    kernel /= kernel.sum()
    blurred = np.zeros((s, s))
    for y in range(s):
        for x in range(s):
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    at = min(max(y + i, 0), s - 1), min(max(x + j, 0), s - 1)
                    blurred[y, x] += kernel[i + reach] * kernel[j + reach] * ink[at]
    cells = np.zeros((4, 4, 8))
    for y in range(s):
        for x in range(s):
            left, right = blurred[y, max(x - 1, 0)], blurred[y, min(x + 1, s - 1)]
            above, below = blurred[max(y - 1, 0), x], blurred[min(y + 1, s - 1), x]
            dx, dy = right - left, above - below
            angle = np.arctan2(dy, dx) / (2 * np.pi) * 8 % 8
            v, u = (y - s / 2) / (s / 4), (x - s / 2) / (s / 4)
            weight = np.hypot(dx, dy) * np.exp(-(u**2 + v**2) / 8)
            for a in range(4):
                for b in range(4):
                    near = max(0, 1 - abs(v + 1.5 - a)) * max(0, 1 - abs(u + 1.5 - b))
                    for o in range(8):
                        apart = abs(angle - o)
                        cells[a, b, o] += near * weight * max(0, 1 - min(apart, 8 - apart))
    found = cells.ravel()
    found = np.minimum(found / np.linalg.norm(found), 0.2)
    return np.sqrt(found / found.sum())


@pytest.mark.parametrize("side", [32, 16])
def test_it_is_what_its_definition_says(side):
    ink, _, _ = ink_of(1, n=2, side=side)
    found = upright(ink[..., None].astype(np.float32))
    # float32 against float64; an angle near a bin's middle may round either way, by little weight.
    np.testing.assert_allclose(found, [by_loops(patch) for patch in ink], atol=2e-3)


def test_blank_patches_are_zeros():
    for value in (0.0, 1.0, -1.0):
        found = np.asarray(upright(np.full((2, 32, 32, 1), value, np.float32)))
        assert not found.any()


def test_words_are_assigned_as_they_are_nearest():
    rng = np.random.default_rng(0)
    x, words = rng.random((40, 128), np.float32), rng.random((7, 128), np.float32)
    found = np.asarray(nearest_word(x, words))
    expected = np.square(x[:, None] - words).sum(2).argmin(1)
    np.testing.assert_array_equal(found, np.eye(7)[expected])


@pytest.mark.parametrize("kind", ["patch", "keypoint"])
def test_pages_are_sums_of_unit_residuals(kind):
    ink, _, _ = ink_of(2, n=10)
    binary = ink[..., None].astype(np.float32)
    raw = np.random.default_rng(3).integers(0, 256, (10, 128), np.uint8)
    raw[4] = 0
    x = np.asarray(upright(binary) if kind == "patch" else root_sift(raw), np.float64)
    words = np.random.default_rng(0).random((5, 128)).astype(np.float32) / 8
    segments = np.zeros((2, 10), np.float32)
    segments[0, :4] = segments[1, 4:9] = 1
    model = sift_describer(kind, words)
    found = np.asarray(model.sums(model.variables, PatchBatch(None, binary, raw), segments))
    found = found.reshape(2, 5, 128)
    expected = np.zeros((2, 5, 128))
    for page, rows in enumerate((range(4), range(4, 9))):
        for i in rows:
            residuals = x[i] - words
            k = np.square(residuals).sum(1).argmin()
            expected[page, k] += residuals[k] / np.linalg.norm(residuals[k])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_word_of_one_patch_does_not_ruin_its_page():
    # As many words as patches, as in a small collection: most words are the centre of one patch.
    raw = np.random.default_rng(0).integers(0, 200, (100, 128), np.uint8)
    words = sift_vlad.centres(root_sift(raw), 100)
    binary = np.zeros((100, 4, 4, 1), np.float32)
    segments = np.repeat(np.eye(2, dtype=np.float32), 50, axis=1)
    model = sift_describer("keypoint", words)
    batch = PatchBatch(None, binary, raw)
    x, assignment = map(np.asarray, model.describe(model.variables, batch))
    nearest = assignment.argmax(1)
    residuals = x.astype(np.float64) - words[nearest]
    lengths = np.linalg.norm(residuals, axis=1, keepdims=True)
    assert (lengths < 1e-6).sum() > 50
    expected = np.zeros((2, 100, 128))
    np.add.at(expected, (np.arange(100) // 50, nearest), residuals / np.maximum(lengths, 1e-12))
    found = np.asarray(model.sums(model.variables, batch, segments)).reshape(2, 100, 128)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_words_are_fitted_once_on_the_patches_that_may_be_used(tmp_path, monkeypatch):
    store, _ = make_store(tmp_path / "store", [50, 60])
    rows = np.flatnonzero(store.index["page"] == 0)
    for name, given in (("a", rows), ("b", rows), ("all", np.arange(len(store)))):
        ensure_words(tmp_path / name, store, given, 6)
    for kind in sift.KINDS:
        a, b, every = (load_words(tmp_path / name, kind) for name in ("a", "b", "all"))
        assert a.shape == (6, 128)
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - every).max() > 1e-3
    monkeypatch.setattr(sift, "_described", lambda *_: pytest.fail("fitted again"))
    ensure_words(tmp_path / "a", store, rows, 6)
    with pytest.raises(UserError, match="sift_words=51 are more than the 50 patches"):
        ensure_words(tmp_path / "c", store, rows, 51)


def test_words_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match=r"no sift_words_keypoint.npy, .* --config.sift.keypoint=0"):
        load_words(tmp_path, "keypoint")
    np.save(tmp_path / "sift_words_keypoint.npy", np.zeros((4, 64), np.float32))
    with pytest.raises(UserError, match=r"float32 \[4, 64\], not float32 \[v, 128\]"):
        load_words(tmp_path, "keypoint")
    (tmp_path / "sift_words_keypoint.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="damaged"):
        load_words(tmp_path, "keypoint")
