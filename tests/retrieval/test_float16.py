"""What reads descriptors computes with float16 ones as with the same numbers in float32."""

import numpy as np
import pytest
from planted import pages_of, planted

from saghog_jax import api
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.evidence.gather import mean_descriptor
from saghog_jax.reports.plots import map_points
from saghog_jax.reports.sheet_data import same_image
from saghog_jax.retrieval.calibration import calibrate
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.retrieval.embeddings_writer import save_embeddings
from saghog_jax.retrieval.metrics import encode_labels
from saghog_jax.retrieval.results import all_results, unit_rows


@pytest.fixture
def both(tmp_path):
    """One collection with float16 descriptors, and with the same numbers in float32."""
    pages = pages_of(12, 4)
    half = planted(tmp_path / "half", pages, noise=6.0, dim=2048, dtype="float16")
    save_embeddings(tmp_path / "whole", half.descriptors, pages, tmp_path / "pages", half.meta)
    whole = load_embeddings(tmp_path / "whole")
    assert (half.descriptors.dtype, whole.descriptors.dtype) == (np.float16, np.float32)
    return half, whole


def test_metrics(both):
    figures = api.evaluate(both[0])
    assert 0.1 < figures["map"] < 0.9
    assert figures == api.evaluate(both[1])


@pytest.mark.parametrize("method", ["none", "sgr"])
def test_rows_of_the_table(both, method):
    config = retrieve_config.get_config()
    config.whitening.mode = "transductive"
    config.rerank.method = method
    (half, _), (whole, _) = (all_results(e, config) for e in both)
    assert len(half) == (2 if method == "none" else 3)
    for ours, expected in zip(half, whole, strict=True):
        assert ours.figures == pytest.approx(expected.figures, abs=1e-6)
        for name, interval in expected.intervals.items():
            assert ours.intervals[name] == pytest.approx(interval, abs=1e-6)


def test_nearest(both):
    half, whole = (api.nearest(e, both[0], k=5) for e in both)
    np.testing.assert_array_equal(half[0], whole[0])
    np.testing.assert_array_equal(half[1], whole[1])


def test_the_mean_of_a_gallery(both):
    half, whole = (mean_descriptor(e.descriptors) for e in both)
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, whole)
    expected = unit_rows(both[1].descriptors).astype(float).mean(0)
    np.testing.assert_allclose(half, expected, atol=1e-6)


def test_unit_rows(both):
    rows = unit_rows(both[0].descriptors)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-6)


def test_calibration(both):
    half, whole = (calibrate(e.descriptors, encode_labels(e.writers)) for e in both)
    np.testing.assert_array_equal(half.shares, whole.shares)


def test_the_map(both):
    half, whole = (map_points(e, e.descriptors, 48) for e in both)
    assert half == whole


def test_copies_of_an_image(tmp_path, both):
    x = np.asarray(both[1].descriptors)[:3].copy()
    # Cosine distances 2e-4 and 0: the first is another image.
    x[1] += np.float32(0.02) * np.roll(x[0], 1)
    x[2] = x[0]
    folder = tmp_path / "copies"
    save_embeddings(folder, unit_rows(x), pages_of(1, 3), tmp_path, {}, dtype="float16")
    e = load_embeddings(folder)
    assert not same_image(e, 0, e, 1)
    assert same_image(e, 0, e, 2)
