"""Pairs of similar patches: mutual nearest neighbours with ink, the most telling first."""

import numpy as np
import pytest
from test_attribution import clusters, made, vectors

from saghog_jax.evidence.attribution import Clusters, PagePatches, Part
from saghog_jax.evidence.like_patches import like_patches, with_ink
from saghog_jax.input_pipeline.cutting.patches import Cut


def part(page, c, share=1.0):
    return Part(page, c, np.zeros(0, np.float32), 1.0, share)


def planted():
    """Two pages whose patches 3 and 5 (and 4 and 6) are the same; patch 7 of `a` lies on 3."""
    a, b = made(30, 1), made(40, 2)
    b.x[[5, 6]], b.assignment[[5, 6]] = a.x[[3, 4]], a.assignment[[3, 4]]
    a.place[3], a.place[4], a.place[7] = (100, 100), (300, 300), (110, 110)
    b.place[5], b.place[6] = (500, 500), (700, 700)
    return a, b


def likeness(parts_a, parts_b):
    """By the vectors of all patches of both pages."""
    total, weights = 0.0, 0.0
    for a, b in zip(parts_a, parts_b, strict=True):
        y = np.concatenate([vectors(a.page, a.clusters), vectors(b.page, b.clusters)])
        total, weights = total + a.share * y @ y.T, weights + a.share
    return total / weights


def worth(gram, a, b, i, j):
    """By its definition."""
    pages = [(a, row) for row in range(len(a.place))] + [(b, row) for row in range(len(b.place))]
    alike, further = gram[i, len(a.place) + j], 0
    for at, (page, row) in enumerate(pages):
        own = a.place[i] if page is a else b.place[j]
        if (np.abs(page.place[row] - own) < 32).all():
            continue
        further += max(gram[i, at], gram[len(a.place) + j, at]) >= 0.9 * alike
    return alike * np.log(len(pages) / (1 + further)) / np.log(len(pages))


@pytest.mark.parametrize("shares", [(1.0,), (0.3, 0.7)])
def test_pairs_are_mutual_and_in_the_order_of_their_worth(shares):
    a, b = planted()
    more = made(30, 3), made(40, 4)
    of_a = [part(page, clusters(), s) for page, s in zip((a, more[0]), shares, strict=False)]
    of_b = [part(page, clusters(), s) for page, s in zip((b, more[1]), shares, strict=False)]
    pairs, alike = like_patches(of_a, of_b, np.ones(30), np.ones(40), 6)
    gram = likeness(of_a, of_b)
    cross = gram[:30, 30:]
    assert len(pairs) > 3
    for (i, j), value in zip(pairs, alike, strict=True):
        assert cross[i].argmax() == j
        assert cross[:, j].argmax() == i
        assert abs(cross[i, j] - value) < 1e-5
    worths = [worth(gram, a, b, i, j) for i, j in pairs]
    assert (np.diff(worths) <= 1e-6).all()
    for place, column in ((a.place, 0), (b.place, 1)):
        gaps = np.abs(place[pairs[:, column]][:, None] - place[pairs[:, column]]).max(2)
        assert (gaps[~np.eye(len(pairs), dtype=bool)] >= 32).all()
    if len(shares) == 1:
        assert {(3, 5), (4, 6)} <= set(map(tuple, pairs.tolist()))
        np.testing.assert_allclose(alike.max(), 1, atol=1e-5)
    for at_most in (0, 1):
        some = like_patches(of_a, of_b, np.ones(30), np.ones(40), at_most)
        assert [len(array) for array in some] == [at_most] * 2


def test_like_patches_speak_for_the_match():
    a, b = ([part(page, clusters())] for page in planted())
    speaks = np.ones(30)
    speaks[3] = -1
    pairs, _ = like_patches(a, b, speaks, np.ones(40), 6)
    assert 3 not in pairs[:, 0]
    pairs, alike = like_patches(a, b, -np.ones(30), np.ones(40), 6)
    assert pairs.shape == (0, 2)
    assert alike.shape == (0,)


def test_a_letter_tells_more_than_blank_paper_against_a_flourish():
    """The paper on the first page looks like a flourish (1.00), the letters .93 like each other."""
    rng = np.random.default_rng(0)
    d = 40

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def page(x, seed):
        place = np.stack([np.arange(len(x)) * 40, np.full(len(x), 40 * seed)], 1)
        return PagePatches(x.astype(np.float32), np.ones((len(x), 1), np.float32), place, 32)

    paper, letter, other = unit(rng.standard_normal((3, d)))
    other -= (other @ letter) * letter
    like_letter = 0.93 * letter + (1 - 0.93**2) ** 0.5 * unit(other)
    flourish = paper + 1e-3 * rng.standard_normal(d)
    papers = paper + 1e-3 * rng.standard_normal((20, d))
    a = page(np.concatenate([[letter], unit(papers), unit(rng.standard_normal((9, d)))]), 1)
    b = page(np.stack([unit(flourish), like_letter, *unit(rng.standard_normal((28, d)))]), 2)
    one = Clusters(np.zeros((1, d), np.float32), False)
    pairs, alike = like_patches([part(a, one)], [part(b, one)], np.ones(30), np.ones(30), 30)
    order = pairs.tolist()
    assert order[0] == [0, 1]
    assert abs(alike[0] - 0.93) < 1e-4
    (flourishes,) = [at for at, (_, j) in enumerate(order) if j == 0]
    assert 1 <= order[flourishes][0] <= 20
    assert alike[flourishes] > 0.999
    # Paper without ink is no candidate.
    ink = np.ones(30)
    ink[1:21] = 0
    pairs, _ = like_patches([part(a, one)], [part(b, one)], ink, np.ones(30), 30)
    assert not set(range(1, 21)) & set(pairs[:, 0].tolist())


def test_ink_is_needed_in_the_patch_and_in_its_middle():
    masks = np.zeros((5, 32, 32), np.uint8)
    masks[0, 16, 10:16] = 1  # 6 pixels in the middle: .006 of the patch, .02 of the middle
    masks[1, :8] = 1  # at the rim alone
    masks[2, 10:20, 16] = 1
    masks[3] = 1
    cut = Cut(np.zeros((5, 1)), np.packbits(masks.reshape(5, -1), axis=1), *np.zeros((2, 5)), None)
    assert with_ink(cut, 32, 0.009).tolist() == [False, False, True, True, False]
    assert with_ink(cut, 32, 0.005).tolist() == [True, False, True, True, False]
    none = Cut(*(array[:0] for array in cut[:4]), None)
    assert with_ink(none, 32, 0.01).shape == (0,)
