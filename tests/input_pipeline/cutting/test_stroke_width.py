"""Measured stroke widths compared with the widths of drawn strokes."""

import cv2
import numpy as np
import pytest
from store_helpers import draw_page

from saghog_jax.input_pipeline.cutting.stroke_width import _runs, stroke_width


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 135])
@pytest.mark.parametrize("width", [6, 12])
def test_straight_strokes_of_any_direction(width, degrees):
    ink = np.zeros((300, 300), np.uint8)
    along = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    across = np.array([-along[1], along[0]])
    for offset in (-60, 0, 60):
        middle = 150.3 + offset * across
        corners = [
            middle + a * 70 * along + b * width / 2 * across
            for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))
        ]
        ink |= _filled(ink.shape, np.array(corners))
    # Pixels at the edges count fully or not at all.
    assert abs(stroke_width(ink) - width) < 0.1 * width


def _filled(shape, corners):
    """Pixels whose centre is in the convex polygon."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.ones(shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) <= 0
    return inside.astype(np.uint8)


@pytest.mark.parametrize("width", [4, 9])
def test_rings_have_strokes_of_all_directions(width):
    ink = np.zeros((300, 300), np.uint8)
    cv2.circle(ink, (150, 150), 90, 1, width)
    # At most a ninth too wide, and OpenCV's rings are up to one pixel wider.
    assert width - 0.3 < stroke_width(ink) < width * 1.12 + 1


def test_a_border_does_not_count():
    ink = (draw_page(0, (600, 800))[:, :, 0] < 128).astype(np.uint8)
    plain = stroke_width(ink)
    assert 1.5 < plain < 4
    ink[:40] = ink[:, :40] = 1
    assert abs(stroke_width(ink) - plain) < 0.1 * plain


def test_a_page_without_ink():
    assert stroke_width(np.zeros((5, 7), np.uint8)) == 0
    assert stroke_width(np.ones((5, 7), np.uint8)) > 0


def test_runs_against_loops():
    mask = (np.random.default_rng(0).random((20, 30)) < 0.6).astype(np.uint8)
    expected = [len(run) for row in mask for run in "".join(map(str, row)).split("0") if run]
    assert _runs(mask).tolist() == expected
    assert _runs(mask[:, :0]).tolist() == []
