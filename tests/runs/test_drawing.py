"""Pictures: strokes along the edges, tokens where they belong."""

import io

import numpy as np
import pytest
from PIL import Image

from saghog_jax.configs import pretrain
from saghog_jax.models.hog import hog
from saghog_jax.runs import pictures

S, TOKEN, BINS = 32, 4, 9


def moments_angle(picture):
    """Direction in degrees, 0 to 180, along which the ink of a picture lies (x right, y down)."""
    ink = 255.0 - picture[..., 0]
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    total = ink.sum()
    x, y = x - (ink * x).sum() / total, y - (ink * y).sum() / total
    xx, yy, xy = ((ink * p).sum() for p in (x * x, y * y, x * y))
    return np.rad2deg(np.arctan2(2 * xy, xx - yy)) / 2 % 180


@pytest.mark.parametrize("degrees", [15, 35, 55, 75, 95, 115, 135, 155, 175])
def test_strokes_lie_along_the_edges_of_a_ramp(degrees):
    # A plane that rises towards `degrees`: its edges, lines of one height, are across it.
    theta = np.deg2rad(degrees)
    y, x = np.mgrid[:S, :S] / S
    image = (x * np.cos(theta) + y * np.sin(theta))[None, :, :, None].astype(np.float32)
    target = np.array(hog(image, BINS, TOKEN, TOKEN))
    drawn = pictures.hog_glyphs(target, TOKEN, TOKEN, BINS, scale=8)
    assert drawn.shape == (1, S * 8, S * 8, 3)
    cell = TOKEN * 8
    # A token in the middle, away from the mirrored border.
    angle = moments_angle(drawn[0, 3 * cell : 4 * cell, 4 * cell : 5 * cell])
    off = (angle - (degrees + 90)) % 180
    # A bin is 20 degrees wide, and drawn in its middle.
    assert min(off, 180 - off) <= 11


def test_strokes_are_in_the_cell_that_was_counted_and_as_dark_as_it_is_full():
    target = np.zeros((2, 16, BINS * 4), np.float32)
    # Token 6 (row 1, column 2) of 8 pixels, bin 3, the cell at the lower left of its four.
    target[0, 6, 3 * 4 + 2] = 1.0
    target[1, 6, 3 * 4 + 2] = 0.5
    drawn = pictures.hog_glyphs(target, 8, 4, BINS, scale=5)
    y, x = np.nonzero((drawn[0] < 255).all(-1))
    assert (x // 20).tolist() == [4] * len(x)
    assert (y // 20).tolist() == [3] * len(y)
    assert drawn[0].min() == 0
    assert abs(int(drawn[1].min()) - 128) <= 1


def test_removed_tokens_are_grey_and_the_others_as_they_were():
    images = np.random.default_rng(0).random((2, S, S, 3))
    mask = np.zeros((2, 64))
    mask[1, 10] = 1
    drawn = pictures.visible(images, mask, scale=2)
    np.testing.assert_array_equal(drawn[0], pictures.enlarge(images, 2)[0])
    changed = np.nonzero((drawn[1] != pictures.enlarge(images, 2)[1]).any(-1))
    assert set(changed[0] // 8) == {1}
    assert set(changed[1] // 8) == {2}
    assert len(changed[0]) == 64


def test_pixels_are_put_back_in_their_places():
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (1, S, S, 3))
    tokens = image.reshape(1, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(1, 64, 48)
    expected = np.round((0.5 + image / 4) * 255).astype(np.uint8)
    np.testing.assert_array_equal(pictures.pixel_tokens(tokens, TOKEN, scale=1), expected)


@pytest.mark.parametrize("target", ["hog_binary", "pixel"])
def test_a_reconstruction_is_one_picture_with_its_error(target):
    config = pretrain.get_config(f"target={target}")
    rng = np.random.default_rng(2)
    width = {"hog_binary": 9, "pixel": 48}[target]
    target_values = rng.random((3, 64, width))
    mask = np.zeros((3, 64))
    mask[:, :48] = 1
    off = np.where(mask[..., None] > 0, 0.1, 0.9)
    picture = pictures.reconstruction(
        rng.random((3, S, S, 3)),
        np.ones((3, S, S, 1)),
        mask,
        target_values,
        target_values + off,
        config,
    )
    image = Image.open(io.BytesIO(picture.png))
    side, gap = S * pictures.SCALE, pictures.GAP
    assert image.size == (6 * (side + gap) - gap, 3 * (side + gap) - gap)
    assert picture.width == image.size[0]
    assert len(picture.columns) == 6
    # Only what the encoder did not see counts: 0.1 squared.
    assert "saw 25% of the tokens" in picture.description
    assert "removed tokens: 0.0100;" in picture.description
    # The ink of a patch without any is white.
    assert np.asarray(image)[:side, side + gap : 2 * side + gap].min() == 255


def test_classes_are_rows():
    picture = pictures.classes(np.zeros((2, 5, S, S, 3)), ["3", "17"], "clusters")
    assert Image.open(io.BytesIO(picture.png)).size == (5 * 68 - 4, 2 * 68 - 4)
    assert "5 patches of each of 2 classes (clusters): 3, 17." in picture.description
