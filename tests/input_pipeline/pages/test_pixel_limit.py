"""Pillow's own limit stays as it is outside of this library's own reading."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.pixel_limit import pillow_limit_lifted


@pytest.fixture
def small_limit(monkeypatch):
    """A limit of 100 pixels, as another program may set it: images of more than 200 are refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "white").save(file, "PNG")
    return file.getvalue()


def refused(data):
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    return True


def test_importing_and_reading_leave_the_guard(small_limit, tmp_path):
    for suffix in ("png", "tif", "webp", "gif"):
        path = tmp_path / f"a.{suffix}"
        Image.new("RGB", (30, 20), "white").save(path)
        assert load_page(path, None, 600).shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert refused(small_limit)
    code = (
        "from PIL import Image; before = Image.MAX_IMAGE_PIXELS\n"
        "import saghog_jax.input_pipeline.pages.images, saghog_jax.api\n"
        "assert before and Image.MAX_IMAGE_PIXELS == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_guard_holds_in_other_threads_meanwhile(small_limit):
    found = []
    with pillow_limit_lifted():
        with pillow_limit_lifted():
            assert Image.open(io.BytesIO(small_limit)).size == (30, 20)
        assert Image.open(io.BytesIO(small_limit)).size == (30, 20)
        other = threading.Thread(target=lambda: found.append(refused(small_limit)))
        other.start()
        other.join()
    assert found == [True]
    assert refused(small_limit)


def test_many_threads_read_at_once(small_limit, tmp_path):
    (tmp_path / "a.png").write_bytes(small_limit)
    found = []

    def read():
        for _ in range(50):
            found.append(load_page(tmp_path / "a.png", None, 600).shape)
            refused(small_limit)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(20, 30, 3)] * 200
    assert np.asarray(Image.new("1", (9, 9))).shape == (9, 9)
