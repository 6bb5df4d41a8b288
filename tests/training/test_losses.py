"""Metric losses: every stored case, naive loops over pairs and triplets, and each argument."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from places import TESTS

from saghog_jax.models.netrvlad import l2_normalize
from saghog_jax.training import losses

GOLDEN = np.load(TESTS / "golden" / "losses.npz")
CASES = sorted(key.removesuffix("_emb") for key in GOLDEN.files if key.endswith("_emb"))

multi_similarity = jax.jit(losses.multi_similarity, static_argnums=5)
triplet_semihard = jax.jit(losses.triplet_semihard)
triplet = jax.jit(losses.triplet, static_argnames="include_self", static_argnums=3)
BASES = (0.2, 0.5, 0.8)
# Left out for size; gradients that are zero are not stored either.
NOT_STORED = {("m16", "ms0.5"), ("m16", "msnomine0.5")}


def case(name):
    return jnp.asarray(GOLDEN[f"{name}_emb"]), jnp.asarray(GOLDEN[f"{name}_labels"])


def cosines(embeddings):
    unit = l2_normalize(embeddings)
    return unit @ unit.T


@jax.jit
def everything(embeddings, labels):
    """Every stored quantity of a case in one compilation: masks, values and gradients."""
    functions = {
        "tm": lambda e: losses.triplet_semihard(cosines(e), labels, 0.1),
        "rt": lambda e: losses.triplet(e @ e.T, labels, 0.1, include_self=True),
    }
    for base in BASES:
        for key, epsilon in [("ms", 0.1), ("msnomine", None)]:
            functions[f"{key}{base}"] = lambda e, base=base, epsilon=epsilon: (
                losses.multi_similarity(cosines(e), labels, 2, 40, base, epsilon)
            )
    masks = losses.hard_pairs(cosines(embeddings), labels, 0.1)
    return masks, {key: jax.value_and_grad(f)(embeddings) for key, f in functions.items()}


@pytest.mark.parametrize("name", CASES)
def test_published_pairs_values_and_gradients(name):
    (positive, negative), results = everything(*case(name))
    np.testing.assert_array_equal(positive, GOLDEN[f"{name}_ms_posmask"].astype(bool))
    np.testing.assert_array_equal(negative, GOLDEN[f"{name}_ms_negmask"].astype(bool))
    for key, (value, gradient) in results.items():
        if f"{name}_{key}_loss" not in GOLDEN:
            # The published triplet loss fails where there is no negative pair.
            assert (name, key) == ("allsame", "rt")
            continue
        # Losses reach 7.5; float32 sums of up to 64 x 64 terms.
        stored = GOLDEN[f"{name}_{key}_loss"]
        np.testing.assert_allclose(value, stored, atol=1e-6, rtol=1e-6, err_msg=key)
        if f"{name}_{key}_grad" in GOLDEN:
            stored = GOLDEN[f"{name}_{key}_grad"]
            np.testing.assert_allclose(gradient, stored, atol=5e-6 * np.abs(stored).max())
        elif (name, key) not in NOT_STORED:
            assert not np.asarray(gradient).any()


def test_number_of_semihard_triplets():
    # The stored counts, from the definition: the loss is a mean over exactly these.
    for name in CASES:
        embeddings, labels = (np.asarray(x) for x in case(name))
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        d = np.linalg.norm(unit[:, None] - unit[None], axis=-1)
        same = labels[:, None] == labels[None]
        gap = d[:, None, :] - d[:, :, None]
        chosen = (same & ~np.eye(len(labels), dtype=bool))[:, :, None] & ~same[:, None, :]
        count = (chosen & (gap > 0) & (gap <= 0.1)).sum()
        np.testing.assert_array_equal(count, GOLDEN[f"{name}_tm_ntriplets"])


def random_case(seed, b=14):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, b)
    centres = rng.normal(size=(4, 6))[labels]
    return jnp.asarray(centres + rng.normal(size=(b, 6)), jnp.float32), jnp.asarray(labels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("epsilon", [None, 0.3])
def test_multi_similarity_by_loops(seed, epsilon):
    embeddings, labels = random_case(seed)
    gram = cosines(embeddings)
    s, y = np.asarray(gram, np.float64), np.asarray(labels)
    total = 0.0
    for i in range(len(y)):
        positives = [s[i, j] for j in range(len(y)) if y[i] == y[j] and i != j]
        negatives = [s[i, j] for j in range(len(y)) if y[i] != y[j]]
        if epsilon is not None:
            easy = (positives, negatives) if positives and negatives else ([], [])
            positives = [p for p in easy[0] if p - epsilon < max(easy[1])]
            negatives = [n for n in easy[1] if n + epsilon > min(easy[0])]
        total += math.log(1 + sum(math.exp(-3 * (p - 0.4)) for p in positives)) / 3
        total += math.log(1 + sum(math.exp(20 * (n - 0.4)) for n in negatives)) / 20
    ours = multi_similarity(gram, labels, 3, 20, 0.4, epsilon)
    np.testing.assert_allclose(ours, total / len(y), rtol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.7])
def test_triplets_by_loops(margin):
    embeddings, labels = random_case(7)
    gram = cosines(embeddings)
    s, y = np.asarray(gram, np.float64), np.asarray(labels)
    d = np.sqrt(np.maximum(2 - 2 * s, 0))
    n = range(len(y))
    semihard = [margin - (d[a, k] - d[a, p]) for a, p, k in itertools.product(n, n, n)
                if a != p and y[a] == y[p] != y[k] and 0 < d[a, k] - d[a, p] < margin]  # fmt: skip
    np.testing.assert_allclose(triplet_semihard(gram, labels, margin), np.mean(semihard), rtol=1e-5)
    for include_self in (False, True):
        rows = []
        for i in n:
            positives = [s[i, j] for j in n if y[i] == y[j] and (include_self or i != j)]
            negatives = [s[i, j] for j in n if y[i] != y[j]]
            threshold = max([0.6, *positives]) - margin
            rows.append(sum(1 - p for p in positives if p < max(negatives) + margin)
                        + sum(k for k in negatives if k > threshold))  # fmt: skip
        np.testing.assert_allclose(
            triplet(gram, labels, margin, include_self), np.mean(rows), rtol=1e-5
        )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrastive_by_loops(temperature):
    embeddings, labels = random_case(3)
    # An anchor without a positive takes part as a negative alone.
    labels = labels.at[0].set(9)
    gram = cosines(embeddings)
    s, y = np.asarray(gram, np.float64) / temperature, np.asarray(labels)
    rows = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        positives = [j for j in others if y[j] == y[i]]
        total = math.log(sum(math.exp(s[i, j]) for j in others))
        if positives:
            rows.append(total - sum(s[i, j] for j in positives) / len(positives))
    assert len(rows) == len(y) - 1
    ours = jax.jit(losses.contrastive)(gram, labels, temperature)
    np.testing.assert_allclose(ours, np.mean(rows), rtol=1e-5)
    assert float(losses.contrastive(gram, jnp.arange(len(y)))) == 0


def test_the_corrected_triplet_punishes_negatives_near_a_far_positive():
    gram = jnp.array([[1.0, 0.65, 0.8], [0.65, 1.0, 0.1], [0.8, 0.1, 1.0]])
    labels = jnp.array([0, 0, 1])
    # Of anchor 0 the negative at 0.8 is nearer than the positive; with itself as a positive the
    # threshold is 0.9 and it goes unpunished.
    plain = triplet(gram, labels)
    assert float(plain) > float(triplet(gram, labels, include_self=True)) + 0.5


def test_duplicates_have_finite_gradients():
    embeddings = jnp.ones((4, 3))
    labels = jnp.array([0, 0, 1, 1])
    _, results = everything(embeddings, labels)
    for value, gradient in results.values():
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient)).all()


def test_large_exponents_do_not_overflow():
    gram = jnp.ones((4, 4))
    loss = multi_similarity(gram, jnp.array([0, 0, 1, 1]), 2, 1000, 0.2)
    np.testing.assert_allclose(loss, 0.8 + math.log(2) / 1000 + math.log1p(math.exp(-1.6)) / 2,
                               rtol=1e-6)  # fmt: skip


def test_one_and_eight_devices_agree():
    embeddings, labels = case("m16")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    loss = jax.jit(lambda e, y: losses.multi_similarity(cosines(e), y))
    sharded = loss(jax.device_put(embeddings, rows), jax.device_put(labels, rows))
    np.testing.assert_allclose(sharded, loss(embeddings, labels), rtol=1e-6)
