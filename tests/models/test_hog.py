"""HOG: every stored setting, a naive per-pixel oracle, and what each argument does."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.models import hog as module
from saghog_jax.models.hog import hog_dim

hog = jax.jit(module.hog, static_argnames=("num_bins", "cell_size", "token_size", "half_precision"))
GOLDEN = np.load(TESTS / "golden" / "hog.npz")
# Tags share inputs: c_ and d_ are other cells and tokens on the images of a_ and b_.
INPUTS = {
    "c_bin": "a_bin", "c_grayc": "a_grayc", "d_bin": "a_bin", "d_grayc": "a_grayc",
    "d_rgbc": "b_rgbc",
}  # fmt: skip
TAGS = sorted(key[:-4] for key in GOLDEN.files if key.endswith("_out") and key[0] != "g")
BINARY = {"a_bin", "a_blob", "b_rgbbin", "c_bin", "d_bin", "d_probe", "e_bin", "f_probe"}


def ramps():
    """Planes that rise by 1/64 a pixel in the directions `f_ramp_deg`."""
    y, x = np.mgrid[:32, :32]
    angles = np.deg2rad(GOLDEN["f_ramp_deg"].astype(np.float64))[:, None, None]
    return ((x * np.cos(angles) + y * np.sin(angles)) / 64)[..., None].astype(np.float32)


def images(tag):
    if tag == "f_ramp":
        return ramps()
    stored = GOLDEN[INPUTS.get(tag, tag) + "_in"].transpose(0, 2, 3, 1)
    if stored.dtype == np.uint8:
        return stored / np.float32(255)
    return stored.astype(np.float32)


def sizes(tag):
    return {"c": (8, 8), "d": (4, 8)}.get(tag[0], (4, 4))


def naive_hog(image, num_bins, cell_size, token_size):
    """One image, pixel by pixel in double precision, straight from the definition."""
    gray = image.astype(np.float64).sum(-1)
    h, w = gray.shape
    reflect = lambda i, n: -i if i < 0 else 2 * (n - 1) - i if i >= n else i  # noqa: E731
    at = lambda y, x: gray[reflect(y, h), reflect(x, w)]  # noqa: E731
    cells = np.zeros((h // cell_size, w // cell_size, num_bins))
    for y in range(h):
        for x in range(w):
            gx = sum(
                k * (at(y + d, x - 1) - at(y + d, x + 1)) for d, k in [(-1, 1), (0, 2), (1, 1)]
            )
            gy = sum(
                k * (at(y - 1, x + d) - at(y + 1, x + d)) for d, k in [(-1, 1), (0, 2), (1, 1)]
            )
            phase = 0.0 if abs(gx) < 1e-6 else math.atan2(gx, gy)
            index = math.floor(phase / math.pi * num_bins) % num_bins
            cells[y // cell_size, x // cell_size, index] += math.hypot(gx, gy)
    cells /= np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)
    side = token_size // cell_size
    return np.array([
        cells[r : r + side, c : c + side].transpose(2, 0, 1).ravel()
        for r in range(0, len(cells), side)
        for c in range(0, cells.shape[1], side)
    ])  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_equals_the_published_target(tag):
    cell_size, token_size = sizes(tag)
    x = jnp.asarray(images(tag))
    ours = np.asarray(hog(x, 9, cell_size, token_size))
    sensitive = GOLDEN[f"{tag}_sens"]
    assert ours.shape == GOLDEN[f"{tag}_out"].shape
    # Binary input: all sums are whole numbers, only the norm rounds. Others: sums of 16 floats.
    tolerance = 3e-7 if tag in BINARY else 1e-5
    stored = GOLDEN[f"{tag}_out"]
    np.testing.assert_allclose(ours[~sensitive], stored[~sensitive], rtol=0, atol=tolerance)
    assert (~sensitive).mean() > 0.4


def test_binary_input_is_never_sensitive():
    for tag in BINARY:
        assert not GOLDEN[f"{tag}_sens"].any()


@pytest.mark.parametrize("tag", ["a_bin", "e_bin", "f_probe"])
def test_cells_before_normalisation(tag):
    # The stored gradients, bins and cells belong to the stored result: ours follows from each.
    ours = np.asarray(hog(jnp.asarray(images(tag)))).reshape(-1, 8, 8, 9).transpose(0, 3, 1, 2)

    def normalised(cells):
        return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)

    np.testing.assert_allclose(normalised(GOLDEN[f"{tag}_cells"][:, 0]), ours, atol=3e-7)
    magnitude = np.hypot(GOLDEN[f"{tag}_gx"].astype(float), GOLDEN[f"{tag}_gy"].astype(float))
    np.testing.assert_allclose(GOLDEN[f"{tag}_mag"], magnitude, atol=1e-6)
    votes = magnitude * (GOLDEN[f"{tag}_bin"] == np.arange(9)[:, None, None])
    sums = votes.reshape(-1, 9, 8, 4, 8, 4).sum((3, 5))
    np.testing.assert_allclose(normalised(sums), ours, atol=3e-7)


def test_ramps_fall_into_the_bin_of_their_angle():
    tokens = np.asarray(hog(jnp.asarray(ramps()))).reshape(36, 8, 8, 9)[:, 2:6, 2:6]
    np.testing.assert_array_equal(
        tokens.argmax(-1), np.broadcast_to(GOLDEN["f_ramp_bin"][:, None, None], (36, 4, 4))
    )


def test_half_precision_moves_edges_of_one_polarity():
    x = jnp.asarray(images("e_bin"))
    half = np.asarray(hog(x, half_precision=True))
    # Every bin as published; the published norm is float32 of exact sums there too.
    np.testing.assert_allclose(half, GOLDEN["g_half_emul_out"], atol=3e-7)
    assert (np.abs(half - np.asarray(hog(x))).max(-1) > 0.1).mean() > 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_rounds_as_the_published_convolution_does(channels):
    x = np.random.default_rng(0).random((4, 16, 16, channels)).astype(np.float32)
    # In numpy: operands and results of the convolution are float16, its sums are not rounded.
    padded = np.pad(
        x.astype(np.float16).astype(np.float64).sum(-1), ((0, 0), (1, 1), (1, 1)), "reflect"
    )
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    gx = (rows[:, :, :-2] - rows[:, :, 2:]).astype(np.float16)
    gy = (columns[:, :-2] - columns[:, 2:]).astype(np.float16)
    phase = np.arctan2(gx.astype(np.float64), gy.astype(np.float64)).astype(np.float16)
    turns = (phase / np.float32(np.pi)).astype(np.float16)
    bins = np.floor((turns * np.float32(9)).astype(np.float16)).astype(int) % 9
    magnitude = np.hypot(gx.astype(np.float64), gy.astype(np.float64))
    votes = magnitude[:, None] * (bins[:, None] == np.arange(9)[:, None, None])
    cells = votes.reshape(4, 9, 4, 4, 4, 4).sum((3, 5))
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    expected = cells.transpose(0, 2, 3, 1).reshape(4, 16, 9)
    ours = np.asarray(hog(jnp.asarray(x), half_precision=True))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("num_bins", "cell_size", "token_size", "channels"),
    [(9, 4, 4, 1), (9, 8, 8, 1), (9, 4, 8, 3), (6, 2, 8, 1), (18, 8, 16, 3)],
)
def test_equals_the_naive_loops(num_bins, cell_size, token_size, channels):
    rng = np.random.default_rng(num_bins)
    # Multiples of 1/8: sums of three channels stay exact, and no angle lies on a border.
    x = (rng.integers(0, 9, (2, 16, 32, channels)) / 8).astype(np.float32)
    ours = hog(jnp.asarray(x), num_bins, cell_size, token_size)
    oracle = np.stack([naive_hog(image, num_bins, cell_size, token_size) for image in x])
    assert ours.shape == (2, 512 // token_size**2, hog_dim(num_bins, cell_size, token_size))
    np.testing.assert_allclose(ours, oracle, atol=1e-6)


def test_horizontal_edges_of_both_polarities_fall_into_bin_zero():
    x = np.zeros((2, 8, 8, 1), np.float32)
    x[0, 4:] = 1
    x[1, :4] = 1
    tokens = np.asarray(hog(jnp.asarray(x)))
    assert (tokens[..., 0] == 1).all()
    assert (tokens[..., 1:] == 0).all()


def test_no_gradient_is_the_zero_vector():
    for value in (0, 1):
        assert not np.asarray(hog(jnp.full((1, 8, 8, 1), value, jnp.float32))).any()


def test_channels_are_summed():
    x = images("b_rgb8")
    np.testing.assert_allclose(
        hog(jnp.asarray(x)), hog(jnp.asarray(x.sum(-1, keepdims=True))), atol=1e-6
    )


def test_sizes_that_do_not_divide_are_refused():
    x = jnp.zeros((1, 32, 32, 1))
    hog = module.hog
    with pytest.raises(ValueError, match="token_size 4 must be a multiple of cell_size 8"):
        hog(x, cell_size=8, token_size=4)
    with pytest.raises(ValueError, match="token_size 8 must be a multiple of cell_size 3"):
        hog(x, cell_size=3, token_size=8)
    with pytest.raises(ValueError, match="32 x 32 pixels do not divide into tokens of 5"):
        hog(x, cell_size=5, token_size=5)
