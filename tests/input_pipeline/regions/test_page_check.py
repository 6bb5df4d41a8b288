"""Light writing is inverted and pages without writing are skipped, in every stage."""

import csv

import cv2
import numpy as np
import pytest
from store_helpers import draw_page, sections

from saghog_jax import prepare
from saghog_jax.configs import common
from saghog_jax.configs import prepare as prepare_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.configs.regions import regions_config
from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.embedding.run_recipe import default_recipe
from saghog_jax.input_pipeline.batches.crop_batches import open_crops
from saghog_jax.input_pipeline.batches.crops import Cutter
from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.cutting.patches import Rule, cut_page
from saghog_jax.input_pipeline.errors import NoWritingError, UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_check import checked_page, find_writing
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.stream import stream_cuts

SIZE = (400, 500)
PLAIN = draw_page(0, SIZE)
RULE = Rule.from_config(common.store_config("eval"))


def negative():
    return 255 - PLAIN


def blueprint():
    """White lines on blue."""
    ground, line = np.array([55, 90, 165.0]), np.array([240, 240, 245.0])
    dark = 1 - PLAIN[:, :, :1] / 235
    return (ground + dark * (line - ground)).clip(0, 255).astype(np.uint8)


def film():
    """A negative in the clear frame of a film."""
    return cv2.copyMakeBorder(negative(), *(60,) * 4, cv2.BORDER_CONSTANT, value=(250,) * 3)


def white_is_zero():
    """A negative of low contrast, as a scan of 12 bits in 16 gives it."""
    return (20 + 0.4 * negative().astype(np.float32)).astype(np.uint8)


def rgb(grey):
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def noise(deviation=4, paper=225):
    return rgb(np.random.default_rng(0).normal(paper, deviation, SIZE))


def grain(deviation=4):
    blurred = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, SIZE), (0, 0), 3)
    return rgb(222 + deviation * blurred / blurred.std())


def shade():
    slope = 230 - 60 * np.linspace(0, 1, SIZE[1])[None]
    return rgb(slope + np.random.default_rng(0).normal(0, 2, SIZE))


def show_through():
    back = to_grey(draw_page(9, SIZE), "opencv")[:, ::-1].astype(float)
    faint = cv2.GaussianBlur(230 - (235 - back) * 0.1, (0, 0), 1.5)
    return rgb(faint + np.random.default_rng(0).normal(0, 1, SIZE))


def ruled():
    page = np.full(SIZE, 230.0)
    for y in range(30, SIZE[0], 40):
        page[y : y + 2, 20:-20] = 120
    return rgb(page)


def dark_edge():
    """The edge of the sheet on a black ground."""
    page = np.full(SIZE, 225.0)
    page[:, :70] = 15
    return rgb(page)


LIGHT = [negative, blueprint, film, white_is_zero]
BLANK = [
    *(lambda: rgb(np.full(SIZE, 225)), lambda: rgb(np.full(SIZE, 0)), noise),
    *(lambda: noise(15), lambda: noise(70, 128), grain, lambda: grain(12), shade),
    *(show_through, ruled, dark_edge, lambda: 255 - noise(15)),
]


@pytest.mark.parametrize("make", LIGHT)
def test_light_writing_is_inverted_and_gives_the_patches_of_the_plain_page(make):
    image, inverted = checked_page(make())
    assert inverted
    cut, plain = cut_page(image, RULE), cut_page(PLAIN, RULE)
    if make is film:
        # SIFT's octaves start at another pixel, and the paper has no end at the frame.
        found = {*zip(cut.x - 60, cut.y - 60)} & {*zip(plain.x, plain.y)}
        assert len(found) >= 0.99 * max(len(cut.x), len(plain.x))
    else:
        np.testing.assert_array_equal(cut.x, plain.x)
        np.testing.assert_array_equal(cut.y, plain.y)
    # Before, the paper between the strokes was ink, which gave other patches.
    assert len(cut_page(make(), RULE).x) != len(plain.x)


def test_dark_writing_stays_as_it_is():
    grainy = PLAIN[:, :, 0] + np.random.default_rng(0).normal(0, 15, SIZE)
    for page in (PLAIN, (PLAIN * 0.4).astype(np.uint8), rgb(grainy)):
        image, inverted = checked_page(page)
        assert image is page
        assert not inverted


@pytest.mark.parametrize("make", BLANK)
def test_a_page_without_writing_is_refused(make):
    with pytest.raises(NoWritingError, match="^no writing: .* pixels lie in strokes, at least 600"):
        checked_page(make())


@pytest.mark.parametrize("polarity", ["dark_on_light", "light_on_dark"])
def test_a_page_of_a_stated_polarity_is_used_in_any_case(polarity):
    turned = polarity == "light_on_dark"
    blank = rgb(np.full(SIZE, 225))
    image, inverted = checked_page(blank, polarity)
    assert inverted == turned
    np.testing.assert_array_equal(image == blank, not turned)


def test_one_word_is_writing():
    page = rgb(np.full(SIZE, 225))
    cv2.putText(page, "Incipit", (100, 200), cv2.FONT_HERSHEY_SCRIPT_COMPLEX, 1.5, (60,) * 3, 3)
    assert find_writing(to_grey(page, "opencv")).found


def test_a_stated_polarity_is_followed():
    assert checked_page(PLAIN, "dark_on_light")[0] is PLAIN
    assert checked_page(negative(), "light_on_dark")[1]
    for page, polarity in ((PLAIN, "light_on_dark"), (negative(), "dark_on_light")):
        with pytest.raises(NoWritingError):
            checked_page(page, polarity)
    with pytest.raises(UserError, match="unknown polarity 'negative', known: auto, dark_on_light"):
        checked_page(PLAIN, "negative")


@pytest.fixture
def pages(tmp_path):
    """A plain page, a negative, a page of noise and one of show-through; their sections."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, image in zip("abcd", (PLAIN, negative(), noise(), show_through())):
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return sections(folder, tmp_path / "stores")


def write_table(data, **polarities):
    folder = data.pages
    with open(f"{folder}/manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "polarity"))
        table.writerows((f"{name}.png", polarities.get(name, "")) for name in "abcd")


def test_column_and_field(pages):
    data, _ = pages
    assert [page.polarity for page in load_manifest(data).pages] == ["auto"] * 4
    data.polarity = "light_on_dark"
    manifest = load_manifest(data)
    assert [page.polarity for page in manifest.pages] == ["light_on_dark"] * 4
    assert manifest.columns == ("polarity",)
    write_table(data, a="dark_on_light", b="auto")
    known = [page.polarity for page in load_manifest(data).pages]
    assert known == ["dark_on_light", "auto", "light_on_dark", "light_on_dark"]
    write_table(data, a="positive")
    with pytest.raises(UserError, match="line 2: the polarity 'positive' is none of auto, dark_on"):
        load_manifest(data)
    data.polarity = "negative"
    with pytest.raises(UserError, match="unknown data.polarity 'negative', known: auto"):
        load_manifest(data)


def test_a_store_holds_the_inverted_page_and_none_without_writing(pages):
    data, section = pages
    lines = []
    store = Store.open(ensure_store(data, section, lines.append))
    rows = [(p.extra["status"], p.extra["reason"]) for p in store.manifest.pages]
    assert rows[:2] == [("ok", ""), ("ok", "light writing on dark ground, inverted")]
    for status, reason in rows[2:]:
        assert status == "empty"
        assert reason.startswith("no writing: 0 pixels lie in strokes, at least 600 are needed")
    counts = [int(page.extra["n_patches"]) for page in store.manifest.pages]
    assert counts[0] == counts[1] > 0
    assert any("1 pages have light writing on dark ground, inverted: b.png" in s for s in lines)
    write_table(data, b="light_on_dark")
    assert ensure_store(data, section, lines.append) != store.path


def test_pages_that_are_embedded(pages):
    manifest = load_manifest(pages[0])
    cuts = list(stream_cuts(manifest.root, manifest.pages, RULE, 10**6, 1))
    assert [page.inverted for page in cuts] == [False, True, False, False]
    np.testing.assert_array_equal(cuts[0][0].patches, cuts[1][0].patches)
    assert all(page[0].startswith("no writing: ") for page in cuts[2:])


def test_an_image_given_to_the_encoder():
    encoder = object.__new__(PageEncoder)
    encoder.recipe, encoder._backend = default_recipe("cls", "binary"), None
    (plain,), (inverted,) = encoder.patches(PLAIN), encoder.patches(negative())
    np.testing.assert_array_equal(plain.patches, inverted.patches)
    for refused in ((noise(), "auto"), (PLAIN, "light_on_dark")):
        with pytest.raises(NoWritingError):
            encoder.patches(*refused)


def test_crops_of_pretraining(pages):
    config = pretrain_config.get_config("source=crops")
    config.data = pages[0]
    config.crops.size, config.crops.patches_per_page, config.global_batch_size = 128, 4, 8
    source = open_crops(config, lambda line: None)
    cutter = Cutter(source._recipe, 10**7)
    np.testing.assert_array_equal(cutter._page(1).image, cutter._page(0).image)
    for row in (2, 3):
        assert cutter._page(row).startswith("no writing: ")


@pytest.mark.parametrize("backend", ["ink", "masks"])
def test_masks_of_every_backend(pages, tmp_path, backend):
    data, _ = pages
    regions = regions_config(backend)
    regions.root, regions.workers = str(tmp_path / "regions"), 1
    if backend == "masks":
        regions.masks.folder = str(tmp_path / "drawn")
        (tmp_path / "drawn").mkdir()
        for name in "abcd":
            cv2.imwrite(str(tmp_path / "drawn" / f"{name}.png"), np.full(SIZE, 255, np.uint8))
    lines = []
    opened = open_masks(load_manifest(data), 10**6, regions)
    for _ in range(2):
        masks = opened.ensure(lines.append)
        assert [mask.status for mask in masks] == ["ok", "ok", "empty", "empty"]
        assert masks[1].reason == "light writing on dark ground, inverted"
        assert masks[2].reason.startswith("no writing: 0 pixels lie in strokes")
        assert any("1 pages have light writing on dark ground" in line for line in lines)
        lines.clear()
    np.testing.assert_array_equal(masks[0].read(SIZE), masks[1].read(SIZE))
    data.polarity = "dark_on_light"
    other = open_masks(load_manifest(data), 10**6, regions)
    assert not set(other.digests) & set(opened.digests)


def test_the_dry_run_says_so(pages, tmp_path, capsys):
    config = prepare_config.get_config()
    config.data, config.dry_run = pages[0], True
    result = prepare.run(config, tmp_path)
    out = capsys.readouterr().out
    assert [page for page, _ in result.skipped] == ["c.png", "d.png"]
    assert "1 pages have light writing on dark ground, inverted: b.png" in out
    assert "c.png: no writing: " in out
