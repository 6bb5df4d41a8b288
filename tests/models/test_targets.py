"""Targets: the image of each kind, normalised pixels, widths, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.models import targets
from saghog_jax.models.hog import hog
from saghog_jax.models.vit import patchify

GOLDEN = np.load(TESTS / "golden" / "mae_targets.npz")
KEY = jax.random.key(0)
PATCHES = jax.random.uniform(KEY, (2, 16, 16, 3))
BINARY = (jax.random.uniform(jax.random.key(1), (2, 16, 16, 1)) > 0.5).astype(jnp.float32)


def make(kind, **changes):
    arguments = {"token_size": 8, "cell_size": 4, "num_bins": 9} | changes
    return jax.jit(lambda x, y: targets.make_targets(kind, x, y, **arguments))(PATCHES, BINARY)


def test_each_kind_is_the_hog_of_its_image():
    gray = PATCHES @ jnp.array([[0.2989], [0.587], [0.114]])
    for kind, image in [("hog_binary", BINARY), ("hog_gray", gray), ("hog_rgb", PATCHES)]:
        np.testing.assert_allclose(make(kind), jax.jit(lambda x: hog(x, 9, 4, 8))(image), atol=1e-5)
    assert not np.allclose(make("hog_gray"), make("hog_rgb"), atol=1e-2)
    half = make("hog_binary", half_precision=True)
    expected = jax.jit(lambda x: hog(x, 9, 4, 8, half_precision=True))(BINARY)
    np.testing.assert_array_equal(half, expected)
    assert not np.array_equal(half, make("hog_binary"))


@pytest.mark.parametrize("kind", targets.TARGETS)
@pytest.mark.parametrize(("token_size", "cell_size", "num_bins"), [(8, 4, 9), (4, 4, 9), (8, 8, 6)])
def test_target_dim_is_the_width_of_the_target(kind, token_size, cell_size, num_bins):
    sizes = {"token_size": token_size, "cell_size": cell_size, "num_bins": num_bins}
    ours = jax.eval_shape(lambda: make(kind, **sizes))
    width = targets.target_dim(kind, token_size, cell_size, num_bins)
    assert ours.shape == (2, (16 // token_size) ** 2, width)


@pytest.mark.parametrize("channels", [1, 3])
def test_patchify_order(channels):
    image = GOLDEN[f"pix{channels}_target_img"].transpose(0, 2, 3, 1)
    image = image / np.float32(255) if image.dtype == np.uint8 else image.astype(np.float32)
    np.testing.assert_array_equal(
        patchify(jnp.asarray(image), 8), GOLDEN[f"pix{channels}_patchify"]
    )


def test_pixels_are_normalised_token_by_token():
    ours = np.asarray(make("pixel"), np.float64)
    np.testing.assert_allclose(ours.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(ours.var(-1, ddof=1), 1, atol=1e-4)  # 1e-6 is added to it
    flat = targets.normalized_pixels(jnp.ones((1, 8, 8, 3)), 8)
    np.testing.assert_array_equal(flat, np.zeros((1, 1, 192)))


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="'hog_gery', known: hog_binary, hog_gray"):
        make("hog_gery")
    with pytest.raises(ValueError, match="unknown target 'pixels'"):
        targets.target_dim("pixels", 4, 4, 9)
