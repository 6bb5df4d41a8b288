"""One pass over a page: the patches of the resized page, at keypoints that are found once."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from stroke_page import stroke_page

from saghog_jax.input_pipeline.cutting import keypoints, one_pass
from saghog_jax.input_pipeline.cutting.patches import Rule, crops, cut_page
from saghog_jax.input_pipeline.cutting.rules import published_rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.store.page_views import cut_views

RULE = replace(
    published_rule("eval"),
    binarization="otsu",
    keypoint_on_ink=False,
    descriptors=True,
    max_patches_per_page=-1,
    detect_scale=1.0,
)


@pytest.fixture(scope="module")
def page():
    return stroke_page()


def _cut(page, rule, *factors, mask=None):
    return one_pass.cut_scales(page, rule, factors, range(len(factors)), mask)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"border": "drop"},
        {"border": "black", "max_ink": 0.5},
        {"min_ink": 0.3},
        {"keypoint_on_ink": True},
        {"detect_on": "grey"},
        {"binarization": "isauvola"},
        {"grey": "opencv", "sift_sigma": 1.2},
        {"max_patches_per_page": 20},
        {"max_patches_per_page": 20, "pick": "random"},
        {"descriptors": False},
    ],
)
def test_at_the_size_of_detection_the_patches_are_those_of_cut_page(page, changes, monkeypatch):
    # No other contrast where keypoints are found on the grey page.
    monkeypatch.setattr(one_pass, "_CLEAR", 0)
    rule = replace(RULE, **changes)
    expected = cut_page(page, replace(rule, detect_scale=0.0), page_seed=0)
    (cut,) = _cut(page, rule, 1.0)
    assert len(cut.x) == len(expected.x) > 10
    for ours, theirs in zip(cut, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.75])
def test_windows_are_those_of_the_resized_page(page, factor, monkeypatch):
    h, w = (round(side * factor) for side in page.shape[:2])
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, w, 300), rng.integers(0, h, 300)
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(page, None, fx=factor, fy=factor, interpolation=method)
    assert resized.shape == (h, w, 3)
    expected = crops(resized, x, y, 32, 255)
    np.testing.assert_array_equal(one_pass.windows(page, factor, x, y, 32, 255), expected)
    # Window by window, as for a page that would not fit into memory. OpenCV rounds positions to
    # 1/32 of a pixel there: at the sharpest edge, 200 grey values over one pixel, that is up to 10
    # values for the cubic kernel.
    monkeypatch.setattr(one_pass, "_WHOLE", 0)
    apart = np.abs(one_pass.windows(page, factor, x, y, 32, 255).astype(int) - expected)
    assert apart.max() <= 10
    assert apart.mean() < 0.3


def test_faint_ink_has_the_keypoints_of_dark_ink(page):
    rule = replace(RULE, detect_on="grey")
    (dark,) = _cut(page, rule, 1.0)
    # A tenth of the contrast: SIFT alone would drop nearly all keypoints.
    faint = (200 + (page.astype(float) - 200) / 10).round().astype(np.uint8)
    found = keypoints.detect(np.asarray(cv2.cvtColor(faint, cv2.COLOR_RGB2GRAY)), 1.6)
    (clear,) = _cut(faint, rule, 1.0)
    assert len(found.positions) < len(dark.x) / 2
    assert 0.8 < len(clear.x) / len(dark.x) < 1.25


def test_without_colours_the_rest_is_the_same(page):
    whole = one_pass.cut_scales(page, RULE, (1.0, 0.5, 2.0), range(3))
    ink = one_pass.cut_scales(page, RULE, (1.0, 0.5, 2.0), range(3), colours=False)
    for a, b in zip(whole, ink, strict=True):
        assert b.patches.shape == (len(a.x), 32, 32, 0)
        for ours, theirs in zip(a[1:], b[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_windows_of_a_shrunken_page_are_averages(page):
    x, y = np.array([16]), np.array([16])
    window = one_pass.windows(page, 0.5, x, y, 32, 255)[0]
    means = page[:64, :64].astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(window - means).max() <= 1


def test_keypoints_of_all_scales_are_the_same(page):
    cuts = _cut(page, RULE, 1.0, 0.5, 1.4)
    small = [set(map(bytes, cut.descriptors)) for cut in cuts]
    assert min(map(len, small)) > 50
    everywhere = small[0] & small[1] & small[2]
    assert len(everywhere) > 0.9 * min(map(len, small))
    # The keypoint of a patch has the same place on the page.
    rows = {bytes(row): i for i, row in enumerate(cuts[2].descriptors)}
    for i, row in enumerate(cuts[0].descriptors):
        if (j := rows.get(bytes(row))) is not None and len(small[0]) == len(cuts[0].x):
            assert abs(cuts[0].x[i] - cuts[2].x[j] / 1.4) < 1.8


def test_keypoints_are_found_at_the_scale_of_detection(page, monkeypatch):
    sizes, blurs = [], []
    detect = keypoints.detect

    def noted(grey, sigma, small_tiles):
        sizes.append(grey.shape)
        blurs.append(sigma)
        return detect(grey, sigma, small_tiles)

    monkeypatch.setattr(keypoints, "detect", noted)
    _cut(page, replace(RULE, detect_scale=2.0), 2.5, 1.0)
    _cut(page, replace(RULE, detect_scale=1.0), 2.5, 1.0)
    # Never on a page that is larger than the largest one that is cut.
    _cut(page, replace(RULE, detect_scale=1.0), 0.5, 0.25)
    assert sizes == [(300, 420), (150, 210), (75, 105)]
    # 1.6 pixels of the page cut at its first scale, at least 1.
    assert blurs == pytest.approx([1.6 * 2 / 2.5, 1.0, 1.6])


def test_patches_lie_where_the_writing_is_at_every_scale():
    """A dot in the middle of white paper: each patch shows it, whatever the scales."""
    page = np.full((240, 320, 3), 255, np.uint8)
    cv2.circle(page, (160, 120), 4, (0, 0, 0), -1)
    for detect_scale in (0.5, 1.0, 2.0):
        rule = replace(RULE, detect_scale=detect_scale)
        for factor, cut in zip((1.0, 0.5, 2.75), _cut(page, rule, 1.0, 0.5, 2.75), strict=True):
            assert len(cut.x), (detect_scale, factor)
            ink = np.unpackbits(cut.ink, axis=1).reshape(-1, 32, 32)
            area = np.pi * (4.5 * factor) ** 2
            assert (np.abs(ink.sum((1, 2)) / area - 1) < 0.5).any(), (detect_scale, factor)
            assert np.abs(cut.x - 160 * factor).max() < 12 * factor


def test_keypoints_outside_of_the_mask_are_left_out(page):
    mask = np.zeros(page.shape[:2], bool)
    mask[:, :100] = True
    for factor, cut in zip((1.0, 2.0), _cut(page, RULE, 1.0, 2.0, mask=mask), strict=True):
        assert len(cut.x) > 0
        assert cut.x.max() <= 100 * factor


def test_a_blank_page_gives_no_patch():
    blank = np.full((64, 64, 3), 255, np.uint8)
    for cut in _cut(blank, RULE, 1.0, 0.5):
        assert cut.patches.shape == (0, 32, 32, 3)
        assert cut.descriptors.shape == (0, 128)


def test_cut_views_follows_the_rule(page):
    factors, seeds = [2.0, 1.0], [0, 1]
    once = cut_views(page, None, RULE, factors, seeds, 10**7)
    for ours, expected in zip(once, _cut(page, RULE, *factors), strict=True):
        np.testing.assert_array_equal(ours.patches, expected.patches)
    each = cut_views(page, None, replace(RULE, detect_scale=0.0), factors, seeds, 10**7)
    # The published way finds keypoints on the enlarged page: more of them.
    assert len(each[0].x) != len(once[0].x)
    # One pass makes no enlarged page, so its size is no error.
    assert len(cut_views(page, None, RULE, factors, seeds, 150 * 210)[0].x) == len(once[0].x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect_scale": -1.0}, "must not be negative"),
        ({"keep": "edges"}, "needs store.keep='ink'"),
        ({"centre_if_empty": True}, "store.centre_if_empty=False"),
    ],
)
def test_rules_that_are_not_possible(changes, message):
    with pytest.raises(UserError, match=message):
        replace(RULE, **changes)


def test_digests_of_older_stores_stay():
    settings = replace(RULE, detect_scale=0.0).settings()
    assert "detect_scale" not in settings
    assert RULE.settings() == settings | {"detect_scale": 1.0}
    assert Rule(**settings) == replace(RULE, detect_scale=0.0)
