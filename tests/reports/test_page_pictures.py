"""Pictures of pages in a report: large ones as far as the file may grow, in a stated order."""

import base64

import cv2
import numpy as np
import pytest
from messages import message_of
from PIL import Image
from planted import page, pages_of, planted
from report_helpers import data_of, report

from saghog_jax.configs.retrieve import report_config
from saghog_jax.reports.page_pictures import Shown, page_pictures
from saghog_jax.retrieval.embeddings import load_embeddings

SIDE = (400, 300)  # height and width


def written(rng, light=False):
    """A page of dark strokes on paper with grain, or of light strokes on a dark ground."""
    ground = np.clip(rng.normal(210, 6, (*SIDE, 3)), 0, 255).astype(np.uint8)
    for _ in range(60):
        x, y = rng.integers(20, SIDE[1] - 20), rng.integers(20, SIDE[0] - 20)
        cv2.ellipse(ground, (int(x), int(y)), (9, 6), 30, 0, 270, (30, 25, 40), 2)
    return 255 - ground if light else ground


def collection(tmp_path, count=6, suffix="png", **extra):
    pages = [page(f"{i}.{suffix}", "", str(i), extra=extra) for i in range(count)]
    planted(tmp_path / "e", pages)
    rng = np.random.default_rng(0)
    (tmp_path / "pages").mkdir()
    for one in pages:
        Image.fromarray(written(rng)).save(tmp_path / "pages" / one.path)
    return load_embeddings(tmp_path / "e")


def fitted(e, mb, others=0, **fields):
    config = report_config()
    config.update({"thumbnail": 40, "max_mb": mb, **fields})
    return page_pictures([Shown(f"p{i}", e, i) for i in range(len(e))], config, others)


def picture_of(uri):
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def total(pictures):
    return sum(len(p.get("image", "")) + len(p.get("large", "")) for p in pictures.values())


def test_with_room_all_pages_are_in_colour(tmp_path):
    pictures, fit = fitted(collection(tmp_path), 10)
    assert fit == ("colour", 6, 6, False, True)
    for picture in pictures.values():
        assert picture_of(picture["image"]).shape == (40, 30, 3)
        assert picture_of(picture["large"]).shape == (*SIDE, 3)
        assert picture["size"] == SIDE[::-1]


def test_pictures_are_reduced_in_the_stated_order(tmp_path):
    e = collection(tmp_path)
    forms = []
    largest = total(fitted(e, 10)[0])
    for room in np.linspace(largest, largest / 30, 9).astype(int):
        pictures, fit = fitted(e, room / 1e6)
        form = ["colour", "ink", "small_ink"].index(fit.form)
        assert fit.fits == (total(pictures) <= room)
        forms.append((fit.half, fit.large < fit.wanted, form))
    assert forms == sorted(forms)
    assert {form[2] for form in forms} == {0, 1, 2}
    assert {form[:2] for form in forms} == {(False, False), (False, True), (True, True)}
    # What else is in the file takes of the room.
    assert fitted(e, 1, 10**6 - 3000)[1] == fitted(e, 0.003)[1]


def test_the_first_pages_have_the_large_pictures(tmp_path):
    e = collection(tmp_path)
    for room in range(2000, 30_000, 7000):
        pictures, fit = fitted(e, room / 1e6)
        large = ["large" in pictures[f"p{i}"] for i in range(6)]
        assert large == sorted(large, reverse=True)
        assert sum(large) == fit.large


def test_ink_is_black_on_white_whatever_the_ground(tmp_path):
    e = collection(tmp_path, 2)
    rng = np.random.default_rng(1)
    strokes = written(rng)
    Image.fromarray(strokes).save(tmp_path / "pages" / "0.png")
    Image.fromarray(255 - strokes).save(tmp_path / "pages" / "1.png")
    colour = total(fitted(e, 10)[0])
    pictures, fit = fitted(e, (colour - 1) / 1e6)
    assert fit.form == "ink"
    dark, light = (picture_of(pictures[key]["large"]) for key in ("p0", "p1"))
    for ink in (dark, light):
        assert set(np.unique(ink)) == {0, 255}
        assert 0.01 < (ink == 0).mean() < 0.3
    assert (dark == light).mean() > 0.99


def test_a_stated_polarity_is_obeyed(tmp_path):
    """Strokes of one polarity, which the table says to be of the other."""
    e = collection(tmp_path, 2, polarity="light_on_dark")
    colour = total(fitted(e, 10)[0])
    pictures, fit = fitted(e, (colour - 1) / 1e6)
    assert fit.form != "colour"
    picture = picture_of(pictures["p0"]["large"])
    ink = cv2.resize(picture, SIDE[::-1], interpolation=cv2.INTER_NEAREST)[:, :, 0] == 0
    strokes = written(np.random.default_rng(0))[:, :, 0] < 120
    assert ink[strokes].mean() < 0.5


@pytest.mark.parametrize("suffix", ["tif", "jp2", "png"])
def test_pages_that_no_browser_opens_have_a_picture(tmp_path, suffix):
    collection(tmp_path, 3, suffix)
    from saghog_jax import retrieve
    from saghog_jax.configs import retrieve as retrieve_config

    config = retrieve_config.get_config()
    config.embeddings, config.report.thumbnail = str(tmp_path / "e"), 40
    retrieve.run(config, tmp_path / "out")
    pages = data_of(tmp_path / "out" / "report.html")["pages"].values()
    assert [picture_of(about["large"]).shape for about in pages] == [(*SIDE, 3)] * 3


def test_large_pictures_are_as_large_as_the_config_says(tmp_path):
    e = collection(tmp_path, 2)
    pictures, _ = fitted(e, 10, picture=200)
    assert picture_of(pictures["p0"]["large"]).shape == (200, 150, 3)


def test_pages_that_are_as_small_as_a_thumbnail_have_one_picture(tmp_path):
    planted(tmp_path / "e", pages_of(2, 2), images=True)
    pictures, fit = fitted(load_embeddings(tmp_path / "e"), 10, thumbnail=60)
    assert fit == ("colour", 0, 0, False, True)
    assert all("large" not in picture for picture in pictures.values())


def test_unreadable_pages_say_why(tmp_path):
    e = collection(tmp_path, 3)
    (tmp_path / "pages" / "1.png").unlink()
    pictures, fit = fitted(e, 10)
    assert fit.large == fit.wanted == 2
    assert "no such file" in pictures["p1"]["missing"].lower()


@pytest.mark.parametrize("name", ["max_mb", "picture", "thumbnail"])
def test_sizes_must_be_above_zero(tmp_path, name):
    e = collection(tmp_path, 1)
    config = report_config()
    config.update({name: type(config[name])(0)})
    message = message_of(page_pictures, [Shown("p0", e, 0)], config, 0)
    assert message == f"config.report.{name}=0 must be above 0"


def test_each_file_says_what_was_done_and_stays_below_its_limit(tmp_path, caplog):
    caplog.set_level("INFO")
    pages = [page(f"{i}.png", "", str(i)) for i in range(8)]
    rng = np.random.default_rng(0)
    (tmp_path / "pages").mkdir()
    for one in pages:
        Image.fromarray(written(rng)).save(tmp_path / "pages" / one.path)

    def files(mb):
        fields = {"thumbnail": 40, "max_mb": mb, "queries_per_file": 4}
        path = report(tmp_path, pages, images=False, **fields)
        return [file.read_text() for file in (path, path.with_name("report_2.html"))]

    colour = files(10.0)
    assert not any('id="fit"' in text for text in colour)
    limit = min(len(text.encode()) for text in colour) - 4000
    for text in files(limit / 1e6):
        assert 'id="fit"' in text
        assert "Pages are compared in black and white" in text
        assert len(text.encode()) <= limit
    caplog.clear()
    for text in files(0.01):
        assert "The small pictures have half their size." in text
        assert "there are small pictures alone" in text
        assert "the file is larger" in text
    said = "report_2.html: This file has at most 0.01 MB"
    assert any(message.startswith(said) for message in caplog.messages)
