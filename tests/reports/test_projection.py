"""The projection of a collection to two dimensions."""

import numpy as np
import pytest

from saghog_jax.reports.projection import project


@pytest.mark.parametrize(("p", "d"), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 9), (60, 8), (30, 200)])
def test_projection_of_any_number_of_pages(p, d):
    x = np.random.default_rng(0).standard_normal((p, d)).astype(np.float32)
    points = project(x)
    assert points.shape == (p, 2)
    assert np.isfinite(points).all()
    assert ((points >= 0) & (points <= 1)).all()


def test_projection_keeps_writers_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 8)
    x = rng.standard_normal((6, 30))[labels] + 0.3 * rng.standard_normal((48, 30))
    points = project(x.astype(np.float32))
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (labels[gaps.argmin(1)] == labels).mean() > 0.9
