"""Random crops of pages, and slots that several crops fill."""

import dataclasses

import cv2
import doxapy
import numpy as np
import pytest
from crop_helpers import (
    BLANK,
    PER_SLOT,
    SIZE,
    make_recipe,
    mixed_recipe,
    plain_recipe,
    sparse_page,
    written_page,
)
from PIL import Image
from store_helpers import draw_page, write_pages

from saghog_jax.input_pipeline.batches import crops
from saghog_jax.input_pipeline.batches.crops import Cutter, crop_at, cut_crop, random_corner
from saghog_jax.input_pipeline.cutting.patches import cut_page
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.store import page_views


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return plain_recipe(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_recipe(tmp_path_factory.mktemp("mixed"))


def page_of(h, w):
    """A page whose pixel values encode their positions."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y, x, np.full_like(x, 7)], -1).astype(np.uint8)


def random_crop(page, size, fill, rng):
    return crop_at(page, random_corner(page.shape, size, rng), size, fill)


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
        # 5 x 25 places; 400 draws miss any particular place with probability 4 %.
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
            cut = cut_crop(page, PER_SLOT, recipe, rng)
            assert same(cutter(slot), cut)

    def test_following_pages_fill_up(self, mixed):
        cutter = Cutter(mixed, 10**8)
        short = unreadable = 0
        for slot in range(20):
            parts, attempt, bad = [], 0, set()
            while sum(len(part.x) for part in parts) < PER_SLOT:
                row = cutter._row(slot + attempt)
                remaining = PER_SLOT - sum(len(part.x) for part in parts)
                if row in (2, 5):
                    bad.add(row)
                else:
                    page = sparse_page() if row in (1, 4) else written_page(row)
                    rng = np.random.default_rng([0, slot, attempt])
                    parts.append(cut_crop(page, remaining, mixed, rng))
                attempt += 1
            actual = cutter(slot)
            np.testing.assert_array_equal(
                actual.patches, np.concatenate([p.patches for p in parts])
            )
            np.testing.assert_array_equal(actual.ink, np.concatenate([p.ink for p in parts]))
            assert actual.short == len(parts) - 1
            assert {row for row, _ in actual.unreadable} == bad
            assert all("\n" not in reason for _, reason in actual.unreadable)
            short, unreadable = short + actual.short, unreadable + len(bad)
        assert short
        assert unreadable

    def test_pages_without_handwriting_are_given_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr(crops, "TRIES", 20)
        manifest_csv = write_pages(tmp_path, 2)
        for i in range(2):
            cv2.imwrite(str(tmp_path / f"p{i:02d}.png"), BLANK)
        message = (
            "only 0 of 8 patches; 2 pages cannot be used, such as 'p0[01].png': no writing: 0 "
        )
        with pytest.raises(UserError, match=message):
            Cutter(make_recipe(manifest_csv), 0)(0)
        for i in range(2):
            (tmp_path / f"p{i:02d}.png").write_bytes(b"")
        message = "only 0 of 8 patches; 2 pages cannot be used, such as 'p0[01].png': an empty file"
        with pytest.raises(UserError, match=message):
            Cutter(make_recipe(manifest_csv), 0)(0)

    def test_pages_are_kept_within_bounds(self, recipe, monkeypatch):
        loads = []
        load_page = page_views.load_page
        monkeypatch.setattr(
            page_views, "load_page", lambda *a: (loads.append(a[0].name), load_page(*a))[1]
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
                # A slot of several crops may request a page twice in a row.
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

    def test_crops_are_not_cut_in_one_pass(self, recipe):
        rule = dataclasses.replace(recipe.rule, detect_scale=1.0)
        with pytest.raises(UserError, match="store.detect_scale=1.0 is for whole pages"):
            dataclasses.replace(recipe, rule=rule)

    @pytest.mark.parametrize(
        "changes", [{"size": 128}, {"gray": 1.0}, {"binarize": 1.0}, {"seed": 1}, {"patches": 7}]
    )
    def test_every_field_matters(self, recipe, changes):
        other = dataclasses.replace(recipe, **changes)
        assert not all(same(Cutter(recipe, 0)(slot), Cutter(other, 0)(slot)) for slot in range(4))
