"""A damaged second half of a WebP or AVIF file, and whole files that look like one."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, features

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page

FORMS = [("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {})]
FORMS = [form for form in FORMS if features.check(form[0].lower())]


@pytest.fixture(scope="module")
def page():
    """A page with writing and the grain of a scan."""
    rng = np.random.default_rng(0)
    page = np.full((300, 500, 3), 235, np.uint8)
    for y in range(30, 300, 30):
        cv2.putText(page, "abc def gh", (20, y), cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, 1, (30, 20, 20))
    return np.clip(page + rng.normal(0, 3, page.shape), 0, 255).astype(np.uint8)


def encoded(array, form):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form[0], **form[1])
    return file.getvalue()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0.5, 0.75])
@pytest.mark.parametrize("filled", [False, True])
def test_the_end_is_missing(tmp_path, page, form, kept, filled):
    data = encoded(page, form)
    kept = int(kept * len(data))
    (tmp_path / "a").write_bytes(data[:kept] + bytes(len(data) - kept) * filled)
    with pytest.raises(PageError, match="damaged image|not an image") as caught:
        load_page(tmp_path / "a", None, 10**6)
    if filled:
        name = {"WEBP": "WebP"}.get(form[0], form[0])
        assert str(caught.value) == f"damaged image: the end of the {name} is missing"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_flat_image_is_whole(tmp_path, page, form, colour):
    """Also one whose lower half is empty, which compresses to nearly nothing."""
    for array in (
        np.full((3000, 2000, 3), colour, np.uint8),
        np.concatenate([page, np.full((2000, 500, 3), colour, np.uint8)]),
    ):
        (tmp_path / "a").write_bytes(encoded(array, form))
        assert load_page(tmp_path / "a", None, 10**7).shape == array.shape
