"""Whitening against scikit-learn and the published figures; the rules of how many dimensions."""

import json

import numpy as np
import pytest
from places import TESTS
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import whitening

GOLDEN = np.load(TESTS / "golden" / "page.npz")


def pages(p, d, seed=0):
    """Descriptors whose variances fall off, as real ones do."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((p, d)) * np.linspace(2, 0.1, d) + rng.standard_normal(d)
    return x.astype(np.float32)


def gram(x):
    return x @ x.T


@pytest.mark.parametrize(
    ("p", "d", "k", "solver"),
    [
        *((60, 40, 16, solver) for solver in ("gram", "covariance", "randomized")),
        *((40, 90, 10, solver) for solver in ("gram", "covariance", "randomized")),
        # The sketch has no spare dimensions to be exact in with all of them.
        *((50, 50, 49, solver) for solver in ("gram", "covariance")),
    ],
)
def test_equals_scikit_learn_to_the_sign(solver, p, d, k):
    x = pages(p, d)
    oracle = PCA(k, whiten=True, svd_solver="full").fit(x.astype(np.float64))
    fitted = whitening.fit(x, k, solver=solver)
    # float32 products: an error of 1e-7 of the largest variance is 2 % of one 5e-6 as large.
    np.testing.assert_allclose(
        fitted.variances, oracle.explained_variance_, rtol=1e-4, atol=1e-7 * fitted.variances[0]
    )
    np.testing.assert_allclose(fitted.mean, x.mean(0), atol=1e-6)
    new = pages(7, d, seed=1)
    # The last component of the square case is well determined only to float32 squared (the Gram
    # matrix): compare what rankings see, inner products, which also forget signs.
    np.testing.assert_allclose(
        gram(whitening.apply(fitted, new)), gram(normalize(oracle.transform(new))), atol=5e-3
    )


@pytest.mark.parametrize("solver", ["gram", "covariance"])
def test_published_pca(solver):
    x = GOLDEN["pca_in"]
    fitted = whitening.fit(x, int(GOLDEN["pca_k"]), solver=solver)
    np.testing.assert_allclose(fitted.variances, GOLDEN["pca_explained_variance"], rtol=1e-4)
    np.testing.assert_allclose(gram(whitening.apply(fitted, x)), GOLDEN["pca_gram"], atol=1e-3)


def test_published_whitening_with_ridge():
    # The published code's other whitening keeps all dimensions, divides by n and adds 1e-5.
    x = GOLDEN["pca_in"]
    fitted = whitening.fit(x, 40, eps=1e-5, ddof=0)
    np.testing.assert_allclose(gram(whitening.apply(fitted, x)), GOLDEN["whiten_gram"], atol=1e-3)


def test_published_whitening_turned_back_and_of_few_pages():
    # `zca` turns the whitened vectors back, which changes no inner product; with more dimensions
    # than pages those of no variance stay zero but for rounding.
    x, turned = GOLDEN["pca_in"], GOLDEN["whiten_zca_out"]
    ours = whitening.apply(whitening.fit(x, 40, eps=1e-5, ddof=0), x)
    np.testing.assert_allclose(gram(ours), gram(normalize(turned)), atol=1e-3)
    few = x[:20]
    ours = whitening.apply(whitening.fit(few, 19, eps=1e-5, ddof=0), few)
    np.testing.assert_allclose(gram(ours), GOLDEN["whiten_small_gram"], atol=1e-3)


def test_ridge_and_ddof_are_not_ignored():
    x = pages(30, 10)
    plain = whitening.fit(x, 5)
    assert whitening.fit(x, 5, ddof=0).variances[0] == pytest.approx(
        plain.variances[0] * 29 / 30, rel=1e-5
    )
    ridge = whitening.fit(x, 5, eps=1.0)
    assert not np.allclose(whitening.apply(plain, x), whitening.apply(ridge, x), atol=1e-2)


def test_published_rule_of_when_and_how_far():
    cases = json.loads(str(GOLDEN["pca_rule"]))
    for (p, d, dim, *_), (shape, k, _) in cases:
        if dim < 1:
            continue
        ours, _ = whitening.choose_dim(dim, p, d, only_beyond=500)
        # Where the published code takes as many components as pages the last is rounding noise.
        assert ours == (0 if k is None else min(k, p - 1)), (p, d, dim, shape)


def test_dim_is_a_quarter_by_default_and_more_is_warned_of():
    assert whitening.choose_dim(0, 400, 1000) == (100, "")
    assert whitening.choose_dim(0, 40_000, 1000) == (512, "")
    assert whitening.choose_dim(0, 400, 30) == (30, "")
    assert whitening.choose_dim(0, 2, 30) == (1, "")
    assert whitening.choose_dim(64, 400, 1000) == (64, "")
    k, remark = whitening.choose_dim(200, 400, 1000)
    assert k == 200
    assert "at most 100 is advised" in remark
    k, remark = whitening.choose_dim(512, 400, 1000)
    assert k == 399
    assert "span 399 dimensions, not 512" in remark
    for dim, p in ((5, 1), (-1, 10)):
        with pytest.raises(UserError, match="impossible"):
            whitening.choose_dim(dim, p, 10)


def test_why_many_dimensions_warn():
    # Fifteen writers with four pages each: k near n makes all pages equally far apart.
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((15, 200)), 4, 0) + 0.5 * rng.standard_normal((60, 200))
    same = np.kron(np.eye(15), np.ones((4, 4))) - np.eye(60) > 0
    gaps = []
    for k in (15, 59):
        y = whitening.apply(whitening.fit(x.astype(np.float32), k), x.astype(np.float32))
        gaps.append((y @ y.T)[same].mean())
    assert gaps[0] > 0.85
    assert gaps[1] < 0.0


def test_constant_directions_are_left_out():
    x = pages(30, 6)
    x[:, 3] = 7
    x[:, 4] = x[:, 5]
    fitted = whitening.fit(x, 6)
    assert fitted.components.shape == (4, 6)
    assert np.isfinite(whitening.apply(fitted, x)).all()


def test_blocks_and_memory_map_do_not_change_the_result(tmp_path, monkeypatch):
    x = pages(50, 70)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = {s: whitening.fit(x, 8, solver=s) for s in ("gram", "covariance", "randomized")}
    monkeypatch.setattr(whitening, "_BLOCK_VALUES", 210)
    for solver, expected in whole.items():
        fitted = whitening.fit(mapped, 8, solver=solver)
        np.testing.assert_allclose(fitted.variances, expected.variances, rtol=1e-4)
        np.testing.assert_allclose(
            gram(whitening.apply(fitted, mapped)), gram(whitening.apply(expected, x)), atol=1e-4
        )


def test_saved_and_loaded(tmp_path):
    fitted = whitening.fit(pages(20, 9), 4)
    whitening.save(fitted, tmp_path / "w.npz", "digest")
    loaded, checkpoint = whitening.load(tmp_path / "w.npz")
    assert checkpoint == "digest"
    for a, b in zip(loaded, fitted):
        np.testing.assert_array_equal(a, b)


def test_bad_files_and_arguments(tmp_path):
    with pytest.raises(UserError, match="no whitening at"):
        whitening.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="not a saved whitening"):
        whitening.load(tmp_path / "text.npz")
    np.savez(tmp_path / "evil.npz", mean=np.array([{}], object))
    with pytest.raises(UserError, match="not a saved whitening"):
        whitening.load(tmp_path / "evil.npz")
    x = pages(10, 4)
    for dim in (0, 5, 10):
        with pytest.raises(ValueError, match="at most 4"):
            whitening.fit(x, dim)
    with pytest.raises(ValueError, match="known: auto, gram"):
        whitening.fit(x, 2, solver="magic")
    with pytest.raises(ValueError, match="width 3"):
        whitening.apply(whitening.fit(x, 2), x[:, :3])
