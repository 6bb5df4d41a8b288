"""BCubed, adjusted Rand index and the paired bootstrap against plain loops."""

import itertools

import numpy as np
import pytest

from saghog_jax.retrieval.hand_metrics import bcubed, difference, figures


def sortings(p=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, p), rng.integers(-1, 7, p)


def loops(hands, labels):
    known = [i for i in range(len(hands)) if labels[i] >= 0]
    precision, recall = [], []
    for i in known:
        hand = [j for j in known if hands[j] == hands[i]]
        writer = [j for j in known if labels[j] == labels[i]]
        both = len(set(hand) & set(writer))
        precision.append(both / len(hand))
        recall.append(both / len(writer))
    return precision, recall


def harmonic(precision, recall):
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return 2 * p * r / (p + r)


def test_bcubed_is_that_of_loops():
    hands, labels = sortings()
    b = bcubed(hands, labels)
    precision, recall = loops(hands, labels)
    np.testing.assert_allclose(b.precision, precision)
    np.testing.assert_allclose(b.recall, recall)
    assert b.f == pytest.approx(harmonic(precision, recall))


def test_figures_are_those_of_loops():
    hands, labels = sortings()
    found = figures(hands, labels)
    known = labels >= 0
    h, w = hands[known], labels[known]
    pairs = list(itertools.combinations(range(len(h)), 2))
    both = sum(h[i] == h[j] and w[i] == w[j] for i, j in pairs)
    in_hand = sum(h[i] == h[j] for i, j in pairs)
    by_writer = sum(w[i] == w[j] for i, j in pairs)
    chance = in_hand * by_writer / len(pairs)
    expected = (both - chance) / ((in_hand + by_writer) / 2 - chance)
    assert found["adjusted_rand"] == pytest.approx(expected)
    assert (found["hands"], found["writers"]) == (len(set(h)), len(set(w)))
    assert found["bcubed_f"] == bcubed(hands, labels).f
    assert found["bcubed_precision"] == pytest.approx(np.mean(loops(hands, labels)[0]))
    assert found["bcubed_recall"] == pytest.approx(np.mean(loops(hands, labels)[1]))


@pytest.mark.parametrize(
    ("hands", "precision", "recall"),
    [([0, 0, 1, 1], 1, 1), ([0, 0, 0, 0], 0.5, 1), ([0, 1, 2, 3], 1, 0.5)],
)
def test_right_joined_and_alone(hands, precision, recall):
    found = figures(np.array(hands), np.array([5, 5, 2, 2]))
    assert (found["bcubed_precision"], found["bcubed_recall"]) == (precision, recall)


def test_difference_is_that_of_loops():
    """Each draw of writers counts the pages of a writer as often as it is drawn."""
    parts = [sortings(seed=seed) for seed in (1, 2)]
    others = [np.random.default_rng(9).integers(0, 4, 40) for _ in parts]
    a = [bcubed(hands, labels) for hands, labels in parts]
    b = [bcubed(hands, labels) for hands, (_, labels) in zip(others, parts)]
    middle, low, high = difference(a, b, samples=50, seed=3)
    assert middle == pytest.approx(np.mean([x.f for x in a]) - np.mean([x.f for x in b]))
    draws = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=50)
    gains = []
    for draw in draws:
        f = []
        for found in (a, b):
            for x in found:
                pages = [i for i, w in enumerate(x.labels) for _ in range(draw[w])]
                f.append(harmonic(x.precision[pages].tolist(), x.recall[pages].tolist()))
        gains.append((f[0] + f[1] - f[2] - f[3]) / 2)
    np.testing.assert_allclose((low, high), np.quantile(gains, [0.025, 0.975]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="no page has a label"):
        figures(np.zeros(2, int), np.full(2, -1))
    one = bcubed(np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="the pages have 1 writer"):
        difference([one], [one], 10)
    two = bcubed(np.zeros(3, int), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="different pages"):
        difference([one], [two], 10)
