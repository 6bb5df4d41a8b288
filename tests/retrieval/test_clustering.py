"""Closeness against loops, first neighbours, the cut, and how sure pages are."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from saghog_jax.input_pipeline.labels import page_links
from saghog_jax.input_pipeline.labels.page_links import link
from saghog_jax.retrieval import closeness as module
from saghog_jax.retrieval.agglomeration import cut
from saghog_jax.retrieval.closeness import closeness
from saghog_jax.retrieval.clustering import (
    RULE,
    average_joins,
    baselines,
    by_rule,
    by_size,
    calibrated,
    certainty,
    enough_labels,
    first_neighbours,
    hdbscan,
    held_out,
    linked_in_blocks,
)
from saghog_jax.retrieval.constraints import no_constraints, resolve
from saghog_jax.retrieval.hand_metrics import bcubed


def writers(count=12, each=4, noise=0.35, seed=0, d=24):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), each)
    x = rng.standard_normal((count, d))[labels] + noise * rng.standard_normal((len(labels), d))
    return x.astype(np.float32), labels


def levels(x):
    """Usual and near level of each page by loops."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    s, p = x @ x.T, len(x)
    everything = [s[i, j] for i in range(p) for j in range(p) if i != j]
    below = [(v - np.median(everything)) ** 2 for v in everything if v <= np.median(everything)]
    usual, near = [], []
    for i in range(p):
        others = sorted((s[i, j] for j in range(p) if j != i), reverse=True)
        usual.append(np.median(others))
        most = usual[i] + module.NEAR_MOST * np.sqrt(np.mean(below))
        near.append(min(np.mean(others[: max(5, round((p - 1) / 8))]), most))
    return s, np.array(usual), np.array(near)


@pytest.mark.parametrize(("block", "most"), [(1 << 24, 5.5), (1 << 24, 3.0), (7 * 70, 99.0)])
def test_closeness_is_that_of_loops(block, most, monkeypatch):
    x, labels = writers(20, 3)
    x = np.concatenate([x, x[:1] + 0.01 * np.random.default_rng(1).standard_normal((10, 24))])
    x = x.astype(np.float32)
    monkeypatch.setattr(module, "NEAR_MOST", most)
    s, usual, near = levels(x)
    # The limit counts for some pages, and not for all.
    limited = near < levels_without_limit(s) - 1e-3
    assert limited.any() == (most == 3.0)
    assert not limited.all()
    monkeypatch.setattr(module, "_BLOCK_VALUES", block)
    found = closeness(x)
    np.testing.assert_allclose(found.usual, usual, atol=1e-6)
    np.testing.assert_allclose(found.near, near, atol=1e-6)
    step = near - usual
    expected = ((s - near[:, None]) / step[:, None] + (s - near) / step) / 2
    np.testing.assert_allclose(found.matrix(), expected, atol=1e-4)
    pairs = np.array([[0, 5], [7, 2], [69, 1]])
    np.testing.assert_allclose(found.of_pairs(pairs), expected[pairs[:, 0], pairs[:, 1]], atol=1e-4)
    hands = np.concatenate([labels, [20] * 9, [21]])
    for rows, close in found.to_hands(hands):
        for i, row in zip(range(*rows.indices(len(x))), close, strict=True):
            for hand in range(22):
                others = [j for j in np.flatnonzero(hands == hand) if j != i]
                mean = np.mean(expected[i, others]) if others else -np.inf
                assert row[hand] == pytest.approx(mean, abs=1e-3)


def levels_without_limit(s):
    p = len(s)
    others = np.sort(s[~np.eye(p, dtype=bool)].reshape(p, p - 1), axis=1)
    return others[:, -max(5, round((p - 1) / 8)) :].mean(1)


def test_first_neighbours_are_those_of_loops():
    x, _ = writers(noise=1.2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    s = x @ x.T
    np.fill_diagonal(s, -1)
    hands = {i: {i} for i in range(len(x))}
    for i in range(len(x)):
        joined = hands[i] | hands[int(s[i].argmax())]
        for j in joined:
            hands[j] = joined
    expected = [min(hands[i]) for i in range(len(x))]
    found = baselines(x)
    assert adjusted_rand_score(expected, found["first_neighbours"]) == 1
    assert found["linked"].tolist() == link(x, 3).tolist()
    assert first_neighbours(np.zeros((1, 0), np.int64)).tolist() == [0]


def test_planted_writers_are_found_and_strangers_stay_alone():
    x, labels = writers(20, 3, noise=0.2)
    x = np.concatenate([x, np.random.default_rng(5).standard_normal((4, 24)).astype(np.float32)])
    labels = np.concatenate([labels, 20 + np.arange(4)])
    near = closeness(x)
    hands = cut(average_joins(near, no_constraints(64)), RULE)
    assert adjusted_rand_score(labels, hands) == 1
    blocks = linked_in_blocks(near, no_constraints(64), RULE)
    assert bcubed(blocks, labels).precision.min() == 1
    assert adjusted_rand_score(labels, hdbscan(near.x)) > 0.8


def test_links_of_pages_that_are_not_close_do_not_count():
    near = closeness(writers(20, 3, noise=1.2)[0])
    counts = [len(np.unique(linked_in_blocks(near, no_constraints(60), t))) for t in (-9, RULE, 9)]
    assert counts[0] < counts[1] < counts[2] == 60


def test_blocks_obey_constraints(monkeypatch):
    x, _ = writers(20, 3, noise=0.2)
    monkeypatch.setattr(page_links, "_CHUNK_VALUES", 7 * 60)
    bound, _ = resolve(60, [(0, 59)], [(0, 1), (3, 4)], None)
    hands = linked_in_blocks(closeness(x), bound, RULE)
    assert hands[0] == hands[59]
    assert hands[0] != hands[1]
    assert hands[3] != hands[4]


def test_labels_choose_the_best_cut():
    x, labels = writers(noise=0.9)
    joins = average_joins(closeness(x), no_constraints(48))
    found = calibrated(joins, labels)
    best = max(bcubed(cut(joins, t), labels).f for t in np.linspace(-3, 3, 2000))
    assert bcubed(cut(joins, found.threshold), labels).f == pytest.approx(best)
    assert (found.rule, found.writers) == ("labels", 12)
    # Unlabelled pages have no say.
    some = np.where(labels < 4, labels, -1)
    assert calibrated(joins, some).writers == 4


def test_held_out_pages_do_not_choose_their_cut():
    x, labels = writers(noise=0.9)
    joins = average_joins(closeness(x), no_constraints(48))
    found = held_out(joins, labels)
    for half in (labels % 2 == 0, labels % 2 == 1):
        other = calibrated(joins, np.where(half, -1, labels))
        expected = bcubed(cut(joins, other.threshold), labels)
        np.testing.assert_array_equal(found.precision[half], expected.precision[half])
        np.testing.assert_array_equal(found.recall[half], expected.recall[half])
    with pytest.raises(ValueError, match="two writers"):
        held_out(joins, np.zeros(48, int))


def test_few_writers_with_many_pages_are_cut_as_hdbscan_cuts():
    x, labels = writers(4, 12, noise=0.4)
    near = closeness(x)
    joins = average_joins(near, no_constraints(48))
    assert by_rule(near, joins).rule == "few hands"
    assert adjusted_rand_score(labels, cut(joins, by_rule(near, joins).threshold)) > 0.9
    assert adjusted_rand_score(labels, cut(joins, RULE)) < 0.5
    near = closeness(writers(20, 3)[0])
    found = by_rule(near, average_joins(near, no_constraints(60)))
    assert (found.threshold, found.rule) == (RULE, "rule")


def test_enough_labels():
    assert enough_labels(np.repeat(np.arange(10), 2))
    assert not enough_labels(np.append(np.repeat(np.arange(9), 2), [9, -1, -1]))
    assert not enough_labels(np.full(3, -1))


def test_how_sure_pages_are_is_that_of_loops():
    x, labels = writers(6, 3, noise=0.5)
    labels[-1] = 6
    near = closeness(x)
    close = near.matrix().astype(np.float64)
    bound, _ = resolve(18, [], [(0, 3)], np.where(labels == 2, 1, np.where(labels == 4, 0, -1)))
    found = certainty(near, labels, bound, 0.3)
    for i in range(18):
        means = {}
        for hand in range(7):
            others = [j for j in np.flatnonzero(labels == hand) if j != i]
            barred = {labels[i], hand} in ({0, 1}, {2, 4})
            if others and not barred:
                means[hand] = close[i, others].mean()
        own = means.pop(labels[i], 0.3)
        assert found.following[i] == max(means, key=means.get)
        assert found.sure[i] == pytest.approx(own - max(means.values()), abs=1e-3)


def test_how_sure_where_there_is_one_hand_or_one_page():
    x, _ = writers(1, 6)
    near = closeness(x)
    found = certainty(near, np.zeros(6, int), no_constraints(6), 0.3)
    assert (found.following == -1).all()
    expected = (near.matrix().sum(1) - np.diag(near.matrix())) / 5 - 0.3
    np.testing.assert_allclose(found.sure, expected, atol=1e-3)
    one = certainty(closeness(x[:1]), np.zeros(1, int), no_constraints(1), 0.3)
    assert np.isnan(one.sure).all()


def test_the_largest_hand_is_the_first():
    assert by_size(np.array([5, 2, 2, 7, 5, 2])).tolist() == [1, 0, 0, 2, 1, 0]
