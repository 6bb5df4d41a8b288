"""Agglomeration against scikit-learn and against joining by brute force under constraints."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from saghog_jax.retrieval.agglomeration import agglomerate, connect, cut, in_order
from saghog_jax.retrieval.constraints import no_constraints, resolve


def similarities(p=30, seed=0, d=4):
    x = np.random.default_rng(seed).standard_normal((p, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.mark.parametrize("threshold", [-0.4, 0.0, 0.3, 0.6, 0.95])
def test_without_constraints_hands_are_those_of_scikit_learn(threshold):
    s = similarities()
    distance = np.clip(1 - s, 0, None)
    expected = AgglomerativeClustering(
        None, metric="precomputed", linkage="average", distance_threshold=1 - threshold
    ).fit_predict(distance)
    hands = cut(agglomerate(s.copy(), no_constraints(len(s))), threshold)
    assert adjusted_rand_score(expected, hands) == 1


def brute(s, constraints, threshold):
    """Joins the two most similar hands that may be joined, by recomputing all means."""
    groups = constraints.groups
    hands = [set(np.flatnonzero(groups == g)) for g in range(groups.max() + 1)]
    apart = {frozenset(pair) for pair in constraints.apart.tolist()}

    def may(a, b):
        writers = {constraints.writers[i] for i in a | b} - {-1}
        return len(writers) < 2 and not any(
            frozenset((groups[i], groups[j])) in apart for i in a for j in b
        )

    while True:
        best = max(
            ((s[np.ix_(list(a), list(b))].mean(), i, j)
             for i, a in enumerate(hands) for j, b in enumerate(hands) if i < j and may(a, b)),
            default=(-np.inf, 0, 0),
        )  # fmt: skip
        if best[0] < threshold:
            break
        hands[best[1]] |= hands.pop(best[2])
    return {frozenset(map(int, hand)) for hand in hands}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [-0.5, 0.1, 0.5])
def test_with_constraints_hands_are_those_of_brute_force(seed, threshold):
    rng = np.random.default_rng(seed)
    s = similarities(24, seed)
    accepted, rejected = (rng.integers(0, 24, (n, 2)).tolist() for n in (6, 40))
    writers = np.where(rng.random(24) < 0.4, rng.integers(0, 3, 24), -1)
    constraints, _ = resolve(24, map(tuple, accepted), map(tuple, rejected), writers)
    hands = cut(agglomerate(s.copy(), constraints), threshold)
    found = {frozenset(np.flatnonzero(hands == h).tolist()) for h in np.unique(hands)}
    assert found == brute(s, constraints, threshold)


def test_pages_that_must_stay_apart_are_never_joined():
    constraints, _ = resolve(4, [(0, 1)], [(1, 2)], None)
    hands = cut(agglomerate(np.ones((4, 4)), constraints), -np.inf)
    assert hands[0] == hands[1] != hands[2]


def test_a_chain_of_pairs_is_one_hand_as_far_as_constraints_allow():
    pairs = np.array([[0, 1], [1, 2], [2, 3], [4, 5]])
    assert connect(pairs, no_constraints(7)).tolist() == [0, 0, 0, 0, 1, 1, 2]
    constraints, _ = resolve(7, [(3, 6)], [(0, 6)], None)
    # The weakest pair, which comes last, would bring 0 and 6 together.
    assert connect(pairs, constraints).tolist() == [0, 0, 0, 1, 2, 2, 1]
    writers = np.array([0, -1, -1, 1, -1, -1, -1])
    constraints, _ = resolve(7, [], [], writers)
    assert connect(pairs, constraints).tolist() == [0, 0, 0, 1, 2, 2, 3]


def test_order_and_sizes():
    assert in_order(np.array([7, 3, 7, 0, 3])).tolist() == [0, 1, 0, 2, 1]
    joins = agglomerate(np.ones((1, 1)), no_constraints(1))
    assert cut(joins, 0.0).tolist() == [0]
    with pytest.raises(ValueError, match=r"similarity \(2, 2\) of 3 pages"):
        agglomerate(np.ones((2, 2)), no_constraints(3))
