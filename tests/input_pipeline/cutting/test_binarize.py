"""Grey conversion and binarisation against the published code's numbers and naive formulas."""

import cv2
import numpy as np
import pytest
from places import TESTS
from skimage.filters import threshold_sauvola

from saghog_jax.input_pipeline.cutting.binarize import BINARIZATIONS, ink_mask, to_grey
from saghog_jax.input_pipeline.errors import UserError

GOLDEN = np.load(TESTS / "golden" / "binarize.npz")


@pytest.mark.parametrize(
    ("method", "key"), [("pillow", "pil_L"), ("pillow", "tv_gray_pil"), ("opencv", "cv2_gray")]
)
def test_grey_is_the_published_one(method, key):
    np.testing.assert_array_equal(to_grey(GOLDEN["rgb"], method), GOLDEN[key])


def test_the_two_greys_differ():
    image = GOLDEN["rgb"]
    assert (to_grey(image, "pillow") != to_grey(image, "opencv")).any()


@pytest.mark.parametrize("method", BINARIZATIONS)
def test_ink_is_the_published_one(method):
    expected = GOLDEN[f"bin_{method.upper()}"] == 0
    mask = ink_mask(GOLDEN["bin_in"], method)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_sauvola_is_that_of_scikit_image():
    grey = GOLDEN["bin_in"]
    threshold = threshold_sauvola(grey, window_size=75, k=0.2, r=128)
    # scikit-image mirrors the page at its border, doxapy cuts the window there.
    inside = (slice(38, -38), slice(38, -38))
    different = (ink_mask(grey, "sauvola") != (grey <= threshold))[inside]
    # If a pixel equals its threshold up to rounding, either result is right.
    assert different.mean() < 1e-3


def _sauvola(grey, window, k):
    """Sauvola's formula; windows end at the border of the image."""

    def mean(values):
        box = {"ddepth": cv2.CV_64F, "ksize": (window, window), "normalize": False}
        box["borderType"] = cv2.BORDER_CONSTANT
        return cv2.boxFilter(values, **box) / cv2.boxFilter(np.ones_like(values), **box)

    values = grey.astype(np.float64)
    deviation = np.sqrt(np.maximum(mean(values**2) - mean(values) ** 2, 0))
    return values <= mean(values) * (1 + k * (deviation / 128 - 1))


@pytest.mark.parametrize("shape", [(37, 37), (38, 200), (300, 50), (120, 160)])
def test_sauvola_near_the_smallest_size_follows_the_formula(shape):
    grey = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(ink_mask(grey, "sauvola"), _sauvola(grey, 75, 0.2))


@pytest.mark.parametrize("method", BINARIZATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (5, 5), (36, 36), (20, 300)])
def test_small_pages_are_safe(method, shape):
    """Without padding, doxapy corrupts memory on such images; repeated calls would crash."""
    grey = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    first = ink_mask(grey, method)
    for _ in range(20):
        np.testing.assert_array_equal(ink_mask(grey, method), first)
    assert first.shape == shape


@pytest.mark.parametrize("method", BINARIZATIONS)
@pytest.mark.parametrize("value", [128, 255])
def test_a_blank_page_has_no_ink(method, value):
    assert not ink_mask(np.full((90, 120), value, np.uint8), method).any()


@pytest.mark.parametrize("method", BINARIZATIONS)
def test_layout_in_memory_does_not_matter(method):
    grey = GOLDEN["bin_in"]
    wide = np.repeat(grey, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    np.testing.assert_array_equal(ink_mask(wide, method), ink_mask(grey, method))


def test_bad_arguments_are_named():
    grey = np.zeros((50, 50), np.uint8)
    with pytest.raises(UserError, match=r"'bernsen'.*isauvola, sauvola, su, otsu"):
        ink_mask(grey, "bernsen")
    with pytest.raises(UserError, match=r"'luma'.*pillow, opencv"):
        to_grey(np.zeros((5, 5, 3), np.uint8), "luma")
    with pytest.raises(ValueError, match=r"uint8 \[h, w\], got float32"):
        ink_mask(grey.astype(np.float32), "otsu")
    with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\], got uint8 \[50, 50\]"):
        to_grey(grey, "pillow")
