"""Decisions and known writers as constraints; what contradicts itself is listed."""

import numpy as np

from saghog_jax.retrieval.constraints import Contradiction, no_constraints, resolve


def test_accepted_chains_are_groups_and_rejected_pairs_stay_apart():
    constraints, contradictions = resolve(6, [(4, 2), (2, 1), (3, 3)], [(0, 4), (1, 0), (5, 5)])
    assert contradictions == []
    assert constraints.groups.tolist() == [0, 1, 1, 2, 1, 3]
    assert constraints.apart.tolist() == [[0, 1]]
    assert constraints.writers.tolist() == [-1] * 6


def test_a_pair_that_is_accepted_and_rejected_is_neither():
    constraints, contradictions = resolve(3, [(0, 1), (1, 2)], [(1, 0)])
    assert contradictions == [Contradiction((0, 1), ((0, 1),))]
    assert constraints.groups.tolist() == [0, 1, 1]
    assert len(constraints.apart) == 0


def test_the_shortest_chain_is_listed_and_left_out():
    accepted = [(0, 1), (1, 2), (2, 3), (0, 4), (4, 3), (3, 5)]
    constraints, contradictions = resolve(6, accepted, [(0, 3)])
    assert contradictions == [Contradiction((0, 3), ((0, 4), (4, 3)))]
    assert constraints.groups.tolist() == [0, 0, 0, 0, 1, 0]


def test_known_writers_stay_and_decisions_against_them_are_listed():
    writers = np.array([0, 0, 1, 1, -1, -1])
    constraints, contradictions = resolve(6, [(1, 4), (4, 2), (3, 5)], [(0, 1)], writers)
    assert contradictions == [
        Contradiction((1, 2), ((1, 4), (4, 2)), writers=True),
        Contradiction((0, 1), ()),
    ]
    assert constraints.groups.tolist() == [0, 0, 1, 1, 2, 1]
    assert constraints.writers.tolist() == writers.tolist()
    # Without their use, writers bind nothing.
    assert resolve(6, [], [], None)[0].groups.tolist() == no_constraints(6).groups.tolist()
