"""A page similarity taken apart by patches, against the plain form with every vector made."""

import jax
import numpy as np
import pytest

from saghog_jax.evidence import attribution
from saghog_jax.evidence.attribution import (
    Clusters,
    PagePatches,
    Part,
    Projected,
    contributions,
    page_total,
)
from saghog_jax.models import netrvlad
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.aggregate import concatenate, l2_normalize, power_norm

POWER = 0.4


def made(n, seed=0, tokens=0, v=4, d=6):
    """A page of n patches of random features."""
    rng = np.random.default_rng(seed)
    shape = (n, tokens) if tokens else (n,)
    x = rng.standard_normal((*shape, d)).astype(np.float32)
    a = rng.dirichlet(np.ones(v), shape).astype(np.float32)
    return PagePatches(x, a, rng.integers(0, 900, (n, 2)), 32)


def clusters(intra=False, v=4, d=6):
    return Clusters(
        np.random.default_rng(9).standard_normal((v, d)).astype(np.float32), intra_normalize=intra
    )


def vectors(page, c):
    """The unit vectors [n, v * d] of all patches, in float64."""
    x, a = page.x.astype(np.float64), page.assignment.astype(np.float64)
    if x.ndim == 2:
        x, a = x[:, None], a[:, None]
    y = (a[:, :, :, None] * (x[:, :, None] - c.centroids)).sum(1)
    if c.intra_normalize:
        y /= np.linalg.norm(y, axis=2, keepdims=True)
    y = y.reshape(len(y), c.centroids.size)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


FORMS = pytest.mark.parametrize(("tokens", "intra"), [(0, False), (0, True), (3, False), (3, True)])


@FORMS
def test_inner_products_are_those_of_the_plain_vectors(tokens, intra):
    page, c = made(7, tokens=tokens), clusters(intra)
    directions = np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)
    found = netrvlad.inner_products(page.assignment, page.x, c.centroids, directions, intra)
    plain = vectors(page, c) @ directions.reshape(3, -1).T
    np.testing.assert_allclose(found, plain, atol=1e-5)


@FORMS
@pytest.mark.parametrize("power", [1.0, POWER])
def test_contributions_add_up_to_the_similarity(tokens, intra, power):
    page, c = made(60, tokens=tokens), clusters(intra)
    total = page_total(page, c)
    np.testing.assert_allclose(total, vectors(page, c).sum(0), atol=1e-5)
    target = np.random.default_rng(2).standard_normal(24).astype(np.float32) / 5
    (found,) = contributions([Part(page, c, total, power, 1.0)], target)
    assert found.shape == (60,)
    z = l2_normalize(power_norm(total, power))
    np.testing.assert_allclose(found.sum(), z @ target, atol=1e-5)
    # Without power normalisation each is the plain inner product.
    if power == 1:
        plain = vectors(page, c) @ target / np.linalg.norm(total)
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_pages_of_any_size_need_one_compiled_shape():
    jax.clear_caches()
    c = clusters()
    for n in (0, 1, 512, 513, 1300):
        page = made(n, n)
        plain = vectors(page, c)
        np.testing.assert_allclose(page_total(page, c), plain.sum(0), atol=1e-4)
        part = Part(page, c, np.ones(24, np.float32), 1.0, 1.0)
        target = np.random.default_rng(n).standard_normal(24).astype(np.float32)
        (shares,) = contributions([part], target)
        np.testing.assert_allclose(shares, plain @ target / 24**0.5, atol=1e-5)
    for compiled in (attribution._total, attribution._products):
        assert compiled._cache_size() == 1


def test_contributions_add_up_behind_whitening():
    page, c = made(60), clusters()
    total = page_total(page, c)
    pages = [l2_normalize(power_norm(page_total(made(40, s), c), POWER)) for s in range(1, 20)]
    fitted = whitening.fit(np.stack(pages), 5)
    z = whitening.apply(fitted, l2_normalize(power_norm(total, POWER))[None])[0]
    target = np.random.default_rng(2).standard_normal(5).astype(np.float32)
    (found,) = contributions([Part(page, c, total, POWER, 1.0)], target, fitted)
    np.testing.assert_allclose(found.sum(), l2_normalize(z) @ target, atol=1e-4)
    assert np.std(found) > 0


@pytest.mark.parametrize("whitened", [False, True])
def test_contributions_to_several_parts_add_up_together(whitened):
    """Two scales of two descriptors, and a third scale at which there is no patch."""
    kinds = (clusters(), 0.7, 1.0), (clusters(True, 3, 5), 0.3, 0.5)

    def parts(seed):
        made_parts = []
        for c, share, power in kinds:
            v, d = c.centroids.shape
            pages = [made(60, seed, v=v, d=d), made(20, seed + 100, v=v, d=d), made(1, v=v, d=d)]
            pages[2] = PagePatches(*(array[:0] for array in pages[2][:3]), pages[2].side)
            made_parts += [Part(p, c, page_total(p, c), power, share / 3) for p in pages]
        return made_parts

    def descriptor(parts):
        rows = [l2_normalize(power_norm(part.total[None], part.power)) for part in parts]
        return concatenate(rows, [part.share for part in parts])[0]

    mine = parts(0)
    z, fitted = descriptor(mine), None
    np.testing.assert_allclose(np.linalg.norm(z), 1, atol=1e-6)
    if whitened:
        fitted = whitening.fit(np.stack([descriptor(parts(s)) for s in range(1, 20)]), 5)
        z = l2_normalize(whitening.apply(fitted, z[None])[0])
    target = np.random.default_rng(2).standard_normal(len(z)).astype(np.float32)
    found = contributions(mine, target, fitted)
    assert [len(part) for part in found] == [60, 20, 0] * 2
    np.testing.assert_allclose(sum(part.sum() for part in found), z @ target, atol=1e-4)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_contributions_to_compact_descriptors_add_up(whitened, empty):
    """Two descriptors, the first at two scales, each projected; one may have no patch."""
    kinds = (clusters(), 2, 0.7, 0.5), (clusters(True, 3, 5), 1, 0.3, 1.0)

    def parts(seed, without=False):
        made_parts = []
        for c, scales, _, power in kinds:
            v, d = c.centroids.shape
            for scale in range(scales):
                page = made(40, seed + 100 * scale, v=v, d=d)
                if without and scales == 1:
                    page = PagePatches(*(array[:0] for array in page[:3]), page.side)
                made_parts.append(Part(page, c, page_total(page, c), power, 1 / scales))
        return made_parts

    def rows(parts):
        units = [l2_normalize(power_norm(part.total[None], part.power)) for part in parts]
        return [concatenate(units[:2], [0.5, 0.5]), units[2]]

    def descriptor(parts):
        columns = [
            whitening.apply(group.by, own) * own.any(1, keepdims=True)
            for group, own in zip(projected, rows(parts), strict=True)
        ]
        return concatenate(columns, [group.share for group in projected])[0]

    others = [parts(seed) for seed in range(1, 20)]
    fits = [whitening.fit(np.concatenate(x), 5) for x in zip(*map(rows, others), strict=True)]
    fits = [fitted._replace(eps=float(fitted.variances.mean())) for fitted in fits]
    groups = zip((2, 1), fits, (0.7, 0.3), strict=True)
    projected = [Projected(*group) for group in groups]
    mine = parts(0, empty)
    z, fitted = descriptor(mine), None
    if whitened:
        fitted = whitening.fit(np.stack([descriptor(other) for other in others]), 4)
        z = whitening.apply(fitted, z[None])[0]
    target = np.random.default_rng(2).standard_normal(len(z)).astype(np.float32)
    shares = contributions(mine, target, fitted, projected)
    assert [len(share) for share in shares] == [40, 40, 0 if empty else 40]
    np.testing.assert_allclose(sum(share.sum() for share in shares), z @ target, atol=1e-4)
    assert np.std(shares[0]) > 0


def test_cosines_of_all_pairs_add_up_to_the_similarity_of_the_sums():
    a, b, c = made(5), made(8, 1), clusters()
    both = np.concatenate([a.x, b.x]), np.concatenate([a.assignment, b.assignment])
    gram = np.asarray(netrvlad.cosine_gram(both[1], both[0], c.centroids))[:5, 5:]
    np.testing.assert_allclose(gram, vectors(a, c) @ vectors(b, c).T, atol=1e-5)
    np.testing.assert_allclose(gram.sum(), page_total(a, c) @ page_total(b, c), rtol=1e-5)


def test_leaving_a_patch_out_changes_the_similarity_as_said_to_first_order():
    page, c = made(400), clusters()
    y, total = vectors(page, c), page_total(page, c).astype(np.float64)
    target = l2_normalize(np.random.default_rng(2).standard_normal(24))
    z = l2_normalize(power_norm(total, POWER))
    whole = z @ target
    without = l2_normalize(power_norm(total - y, POWER)) @ target
    part = Part(page, c, total.astype(np.float32), POWER, 1.0)
    (share,) = contributions([part], target)
    (of_length,) = contributions([part], z)
    expected = POWER * (share - whole * of_length)
    np.testing.assert_allclose(of_length.sum(), 1, atol=1e-5)
    assert np.corrcoef(whole - without, expected)[0, 1] > 0.99
    slope = (expected @ (whole - without)) / (expected @ expected)
    assert 0.9 < slope < 1.1
