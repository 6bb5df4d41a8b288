"""The backend `ink` on scans whose handwriting is known."""

import functools

import cv2
import numpy as np
import pytest
from region_pages import CLUTTER, make_scan, recall_and_junk

from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions import ink as ink_backend
from saghog_jax.input_pipeline.regions.backends import Place, make_backend
from saghog_jax.input_pipeline.regions.ink import find_ink, sauvola

SEEDS = range(4)
PARAMETERS = regions_config("ink").ink.to_dict()

scan = functools.cache(make_scan)


def find(image, **changes):
    return find_ink(image, **{**PARAMETERS, **changes})


@functools.cache
def mask_of(seed):
    return find(scan(seed)[0]).mask


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def resized(image, size, interpolation):
    return cv2.resize(image, size, interpolation=interpolation)


@pytest.mark.parametrize("seed", SEEDS)
def test_nearly_all_ink_is_found_and_little_else(seed):
    image, ink = scan(seed)
    recall, junk = recall_and_junk(image, ink, mask_of(seed))
    assert recall >= 0.95
    assert junk <= 0.4
    # The measure is meaningful: the whole page as a mask has all edges outside of the text.
    assert recall_and_junk(image, ink, np.ones_like(ink)) == (1, 1)


@pytest.mark.parametrize("kind", CLUTTER)
def test_each_kind_of_clutter_alone(kind):
    image, ink = make_scan(9, (kind,))
    recall, junk = recall_and_junk(image, ink, find(image).mask)
    assert recall >= 0.95
    # A stamp contains letters, and a miniature contains parts of their size; without other writing
    # both may be kept.
    assert junk <= (1 if kind in ("stamp", "decoration") else 0.4)


def test_clean_pages_lose_nothing():
    image, ink = make_scan(5, ())
    assert recall_and_junk(image, ink, find(image).mask)[0] >= 0.99


def test_large_letters_on_a_small_fragment_are_not_taken_for_rules():
    image, ink = make_scan(5, ())
    rows, columns = np.nonzero(ink)
    y, x = int(np.median(rows)), int(np.median(columns))
    part = np.s_[y - 20 : y + 20, x - 40 : x + 40]
    image = cv2.resize(image[part], (320, 160), interpolation=cv2.INTER_CUBIC)
    ink = cv2.resize(ink[part].astype(np.uint8), (320, 160)) > 0
    assert (ink & find(image).mask).sum() / ink.sum() >= 0.9


@pytest.mark.parametrize("factor", [0.6, 1.5, 2.2])
def test_scale_does_not_matter(factor):
    overlaps = []
    for seed in SEEDS:
        image, ink = scan(seed)
        size = tuple(round(side * factor) for side in ink.shape[::-1])
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        mask = find(resized(image, size, how)).mask
        assert mask.shape == size[::-1]
        back = resized(mask.astype(np.uint8), ink.shape[::-1], cv2.INTER_NEAREST) > 0
        recall, junk = recall_and_junk(image, ink, back)
        assert recall >= 0.95
        assert junk <= 0.4
        overlaps.append(overlap(back, mask_of(seed)))
    assert np.mean(overlaps) >= 0.85


def spread(columns, rows=1, size=(500, 650)):
    """The same clean page many times, side by side and below, and its ink."""
    image, ink = (np.asarray(array, np.uint8) for array in scan(5, ()))
    image, ink = resized(image, size, cv2.INTER_AREA), resized(ink * 255, size, cv2.INTER_AREA)
    return np.tile(image, (rows, columns, 1)), np.tile(ink > 127, (rows, columns))


@pytest.mark.parametrize("columns", [1, 3, 6, 12, 24, 48])
@pytest.mark.parametrize("turned", [False, True])
def test_a_roll_keeps_all_its_columns(columns, turned):
    image, ink = spread(columns)
    share = find(image[:, :500]).mask.mean()
    if turned:
        image, ink = np.ascontiguousarray(np.rot90(image)), np.rot90(ink)
    result = find(image)
    assert result.mask.shape == ink.shape
    assert (ink & result.mask).sum() / ink.sum() >= 0.99
    assert result.mask.mean() == pytest.approx(share, rel=0.06)
    height = find(spread(1)[0]).meta["letter_height"]
    assert result.meta["letter_height"] == pytest.approx(height, rel=0.25)


@pytest.mark.parametrize(("columns", "rows"), [(5, 4), (12, 10)])
def test_a_large_sheet_keeps_its_small_writing(columns, rows):
    image, ink = spread(columns, rows, (350, 455))
    result = find(image)
    assert (ink & result.mask).sum() / ink.sum() >= 0.98
    share = find(image[:455, :350]).mask.mean()
    assert result.mask.mean() == pytest.approx(share, rel=0.1)


def test_a_note_on_a_large_sheet_is_found():
    image, ink = spread(1)
    sheet, place = np.full((3300, 4200, 3), 235, np.uint8), np.s_[2000:2650, 3000:3500]
    sheet[place] = image
    mask = find(sheet).mask
    assert (ink & mask[place]).sum() / ink.sum() >= 0.95
    assert mask.sum() <= 1.1 * mask[place].sum()


def test_a_roll_on_a_dark_ground_loses_the_ground_alone():
    image, ink = spread(24)
    image[:40], image[-50:], image[:, :60] = 35, 35, 35
    image = np.clip(
        image.astype(int) + np.random.default_rng(0).integers(-6, 7, image.shape), 0, 255
    )
    mask = find(image.astype(np.uint8)).mask
    inside = np.s_[50:-60, 70:]
    assert (ink[inside] & mask[inside]).sum() / ink[inside].sum() >= 0.97
    assert not mask[:30].any()
    assert not mask[-40:].any()


def test_the_threshold_in_tiles_is_that_of_the_whole(monkeypatch):
    grey = cv2.cvtColor(scan(0)[0], cv2.COLOR_RGB2GRAY)
    whole = sauvola(grey, 0.15, 1000)
    monkeypatch.setattr(ink_backend, "_TILE", 300)
    # The sums of box filters are rounded in another order.
    assert (sauvola(grey, 0.15, 1000) != whole).mean() < 1e-4


@pytest.mark.parametrize("shape", [(20, 9000), (1, 5000), (9000, 40)])
def test_a_strip_needs_little_memory(shape):
    image = np.full((*shape, 3), 240, np.uint8)
    assert not find(image).mask.any()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_do_not_matter(turns):
    image = np.ascontiguousarray(np.rot90(scan(0)[0], turns))
    assert overlap(np.rot90(find(image).mask, -turns), mask_of(0)) >= 0.97


def test_grey_is_as_good_as_colour():
    image, _ = scan(1)
    assert (image[..., 0] != image[..., 2]).any()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(find(np.repeat(grey[..., None], 3, 2)).mask, mask_of(1))


def blank_pages():
    rng = np.random.default_rng(0)
    noise = rng.normal(225, 4, (600, 420, 1)).clip(0, 255).astype(np.uint8).repeat(3, 2)
    ruled, bed = noise.copy(), noise.copy()
    for y in range(60, 560, 30):
        cv2.line(ruled, (20, y), (400, y), (140, 150, 180), 2)
    bed[:30] = bed[-25:] = 30
    bed[:, :20] = bed[:, -30:] = 30
    return {
        "white": np.full((600, 420, 3), 255, np.uint8), "black": np.zeros((50, 70, 3), np.uint8),
        "noise": noise, "ruled": ruled, "on a dark bed": bed,
        "one pixel": np.full((1, 1, 3), 200, np.uint8),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "image"), blank_pages().items(), ids=blank_pages())
def test_a_blank_page_is_empty(name, image):
    result = find(image)
    assert result.mask.shape == image.shape[:2]
    assert not result.mask.any()
    assert result.scores == ()


def test_the_height_of_letters_is_in_pixels_of_the_page():
    image, _ = scan(0)
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    once, twice = (find(i).meta["letter_height"] for i in (image, large))
    assert 10 < once < 40
    assert twice == pytest.approx(2 * once, rel=0.25)
    assert sum(find(image).scores) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "changes", [{"side": 500}, {"k": 0.6}, {"gap": 1.5}, {"min_share": 0.3}], ids=str
)
def test_every_field_matters(changes):
    regions = regions_config("ink")
    regions.ink.update(changes)
    image, _ = scan(1)
    result = make_backend(regions).find(image, Place(image.shape[:2], None, None))
    assert overlap(result.mask, mask_of(1)) < 0.98
    assert make_backend(regions).parameters == {**PARAMETERS, **changes}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("side", 100, "at least 200"), ("k", 0.0, "positive"), ("gap", -1.0, "positive"),
     ("min_share", 1.0, r"in \[0, 1\)")],
)  # fmt: skip
def test_values_out_of_range(field, value, message):
    regions = regions_config("ink")
    regions.ink[field] = value
    with pytest.raises(UserError, match=f"regions.ink.{field}={value} must be.*{message}"):
        make_backend(regions)
