"""The built-in corpus: the same bytes everywhere; only their letters distinguish the writers."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from places import ROOT

from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, ensure, render_page
from saghog_jax.input_pipeline.datasets.synthetic_glyphs import ALLOGRAPHS
from saghog_jax.input_pipeline.datasets.synthetic_hand import draw_hand, on_page, write_line
from saghog_jax.input_pipeline.datasets.synthetic_page import draw_ink, draw_page
from saghog_jax.input_pipeline.datasets.synthetic_text import pseudo_words

TINY = Corpus(train_writers=2, test_writers=1, pages=2, width=200, height=120, lines=2)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ensure(tmp_path_factory.mktemp("tiny"), TINY, workers=1)


def test_the_same_bytes_whatever_the_number_of_processes(tiny, tmp_path):
    for workers in (1, 2):
        again = ensure(tmp_path / str(workers), TINY, workers)
        assert files(again.parent) == files(tiny.parent)


def test_manifest(tiny):
    with tiny.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "writer", "page", "split"]
    assert len(rows) == len({row["path"] for row in rows}) == 6
    writers = {
        split: [row["writer"] for row in rows if row["split"] == split]
        for split in ("train", "test")
    }
    assert len(writers["train"]) == 4
    assert len(writers["test"]) == 2
    assert len(set(writers["train"])) == 2
    assert not set(writers["train"]) & set(writers["test"])
    for row in rows:
        assert cv2.imread(str(tiny.parent / row["path"])).shape == (120, 200, 3)


def test_default_size():
    rows = synthetic.manifest_rows(synthetic.DEFAULT)
    writers = {
        split: {r["writer"] for r in rows if r["split"] == split} for split in ("train", "test")
    }
    assert len(rows) == 240
    assert (len(writers["train"]), len(writers["test"])) == (40, 20)


def test_second_call_writes_nothing(tiny, monkeypatch):
    monkeypatch.setattr(synthetic, "write_corpus", None)
    assert ensure(tiny.parents[1], TINY) == tiny


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_writers", 3), ("test_writers", 2), ("pages", 3), ("width", 220), ("height", 140)],
)
def test_numbers_and_sizes_have_an_effect(name, value):
    other = replace(TINY, **{name: value})
    assert other.digest != TINY.digest
    if name in ("width", "height"):
        assert render_page(other, 0).shape == (other.height, other.width, 3)
    else:
        added = {"train_writers": 2, "test_writers": 2, "pages": 3}[name]
        assert len(synthetic.manifest_rows(other)) == 6 + added


def test_lines_and_seed_have_an_effect():
    one, many = replace(TINY, height=600, lines=1), replace(TINY, height=600, lines=8)
    assert one.digest != many.digest
    # Rows of the page with writing: one line on one page, five to eight lines on the other.
    rows = [(np.ptp(render_page(corpus, 0)[..., 1], axis=1) > 60).sum() for corpus in (one, many)]
    assert rows[1] > 3 * rows[0] > 0
    other = replace(TINY, seed=1)
    assert other.digest != TINY.digest
    assert not np.array_equal(render_page(other, 0), render_page(TINY, 0))


@pytest.mark.parametrize("bad", [{"pages": 0}, {"lines": 0}, {"seed": -1}, {"width": 50}])
def test_bad_numbers_are_named(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        replace(TINY, **bad)


KILLED = """
import os, signal, sys
from pathlib import Path
from saghog_jax.input_pipeline.datasets import synthetic
sys.path += ["tests", "tests/input_pipeline/datasets"]
from test_synthetic import TINY

encode = synthetic.encode_page
def encode_page(corpus, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(corpus, number)
synthetic.encode_page = encode_page
synthetic.ensure(Path(sys.argv[1]), TINY, workers=1)
"""


def test_killed_write_is_done_again(tiny, tmp_path):
    root = ROOT
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert len(list((left / "pages").iterdir())) == 3
    manifest = ensure(tmp_path, TINY, workers=1)
    assert files(manifest.parent) == files(tiny.parent)
    # The files of the killed write could belong to a running write, so they are removed when old.
    assert left.is_dir()
    os.utime(left, (0, 0))
    manifest.unlink()
    ensure(tmp_path, TINY, workers=1)
    assert files(manifest.parent) == files(tiny.parent)
    assert list(tmp_path.iterdir()) == [manifest.parent]


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(corpus, number):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "encode_page", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure(tmp_path, TINY, workers=1)
    assert not list(tmp_path.iterdir())


def stream(*key):
    return np.random.default_rng(key)


def letter_images(hand, letters, rng):
    """Each letter alone, drawn as `hand` does, float [letters, 2304], unit length."""
    images = []
    for letter in letters:
        path, _ = write_line(hand, [letter], 14.0, 30.0, 60.0, rng)
        ink = draw_ink(path, hand, (48, 48), rng)
        images.append(cv2.GaussianBlur(ink, (0, 0), 1.5).astype(float).ravel())
    images = np.array(images)
    return images / np.linalg.norm(images, axis=1, keepdims=True)


def nearest_writer_share(hands):
    """Fraction of letters whose most similar writer, by four other instances, is the right writer.

    Slant, size, pen and all else but the letters themselves are made the same for all writers.
    """
    letters = "abdefghkmnrstwyz"
    hands = [replace(hands[0], letters=hand.letters) for hand in hands]
    known = np.stack(
        [
            np.mean([letter_images(hand, letters, stream(1, n, i)) for i in range(4)], axis=0)
            for n, hand in enumerate(hands)
        ]
    )
    queries = np.stack([letter_images(hand, letters, stream(2, n)) for n, hand in enumerate(hands)])
    similarity = np.einsum("qlp,glp->lqg", queries, known)
    return (similarity.argmax(-1) == np.arange(len(hands))).mean()


def test_letters_alone_tell_the_writer():
    hands = [draw_hand(stream(0, n)) for n in range(8)]
    # By chance 1/8 (standard deviation .03), which is the result if writers share all letters.
    assert nearest_writer_share(hands) > 0.35
    same = [replace(hand, letters=hands[0].letters) for hand in hands]
    assert nearest_writer_share(same) < 0.25


def test_writers_choose_other_allographs():
    hands = [draw_hand(stream(0, n)) for n in range(30)]
    for letter, allographs in ALLOGRAPHS.items():
        lengths = {len(hand.letters[letter].points) for hand in hands}
        assert lengths == {len(glyph.points) for glyph in allographs}


def test_a_writer_keeps_letters_and_joins_from_page_to_page(monkeypatch):
    hands = []

    def spy(hand, rng):
        hands.append(hand)
        return on_page(hand, rng)

    monkeypatch.setattr(synthetic.synthetic_hand, "on_page", spy)
    for number in range(4):
        render_page(TINY, number)
    points = [np.concatenate([glyph.points for glyph in hand.letters.values()]) for hand in hands]
    assert np.array_equal(points[0], points[1])
    assert np.array_equal(points[2], points[3])
    assert hands[0].joins == hands[1].joins
    assert points[0].shape != points[2].shape or not np.allclose(points[0], points[2])


def test_joins_connect_letters():
    hand = draw_hand(stream(0, 0))
    strokes = [
        int(
            write_line(replace(hand, joins=joins), ["nunu"], 0.0, 30.0, 99.0, stream(1))[
                0
            ].start.sum()
        )
        for joins in (frozenset(), frozenset("nu"))
    ]
    assert strokes[0] == 4
    assert strokes[1] < 4


TRAITS = {
    "x_height": 30.0,
    "aspect": 1.5,
    "slant": 0.6,
    "roundness": 0.5,
    "pen": 4.0,
    "nib_angle": 0.0,
    "contrast": 0.9,
    "pressure": 0.9,
    "ascender": 1.5,
    "descender": 1.5,
    "letter_space": 0.6,
    "word_space": 2.0,
    "tail": 2.0,
    "slope": 0.1,
    "wobble": 0.4,
}


@pytest.mark.parametrize("trait", TRAITS)
def test_every_trait_is_drawn(trait):
    def draw(hand):
        path, _ = write_line(hand, ["algy", "unc"], 10.0, 50.0, 280.0, stream(3))
        return draw_ink(path, hand, (90, 300), stream(4)).astype(float)

    hand = replace(draw_hand(stream(0, 2)), joins=frozenset())
    plain, changed = draw(hand), draw(replace(hand, **{trait: TRAITS[trait]}))
    # At least a twentieth of the ink is at other places.
    assert np.abs(changed - plain).sum() > 0.05 * plain.sum()


def test_lines_are_filled_and_not_overrun():
    hand = draw_hand(stream(0, 1))
    path, written = write_line(hand, ["seven"] * 50, 20.0, 50.0, 500.0, stream(5))
    assert 3 < written < 50
    assert 300 < path.points[:, 0].max() < 530
    assert write_line(hand, ["unending"], 0.0, 50.0, 10.0, stream(5))[1] == 1


def test_text_and_paper_do_not_know_the_writer(monkeypatch):
    # Page 2 belongs to the first writer of four pages each, and to the second of two pages each.
    texts, papers = [], []

    def spy_words(count, rng):
        texts.append(pseudo_words(count, rng))
        return texts[-1]

    def spy_page(ink, rng):
        papers.append(draw_page(np.zeros_like(ink), rng))
        return papers[-1]

    monkeypatch.setattr(synthetic.synthetic_page, "pseudo_words", spy_words)
    monkeypatch.setattr(synthetic.synthetic_page, "draw_page", spy_page)
    for pages in (4, 2):
        render_page(replace(TINY, pages=pages), 2)
    assert texts[0] == texts[1]
    assert np.array_equal(papers[0], papers[1])


def test_paper_colour_is_not_a_function_of_the_writer():
    corpus = replace(TINY, train_writers=60, pages=4, width=100, height=100, lines=1)
    colours = np.array(
        [np.median(render_page(corpus, number), axis=(0, 1)) for number in range(240)]
    ).reshape(60, 4, 3)
    between = 4 * colours.mean(1).var(0, ddof=1)
    within = colours.var(1, ddof=1).mean(0)
    # An F ratio with 59 and 180 degrees of freedom; above 1.6 once in 200 seeds.
    assert np.all(between / within < 1.6)
    assert np.all(colours.std(axis=(0, 1)) > 8)


def test_pseudo_words_can_be_written():
    words = pseudo_words(2000, stream(6))
    assert set("".join(words)) <= set(ALLOGRAPHS)
    assert set("abcdefghijklmnopqrstuvwxyz.,") <= set("".join(words))
    assert words[0][0].isupper()
    assert 3 < np.mean([len(word) for word in words]) < 8
