"""Pages of 16 bits: the bits really used, white as zero, planes, alpha channels that are zero."""

import cv2
import numpy as np
import pytest
from PIL import Image
from tiff_files import frame, write

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages import sixteen_bits
from saghog_jax.input_pipeline.pages.images import load_page

MAX_PIXELS = 10**6
WHITE_IS_ZERO = {262: 0}


def load(path):
    return load_page(path, None, MAX_PIXELS)


@pytest.fixture
def grey():
    """A page of all greys, [16, 16]."""
    return np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.fixture
def rgb(grey):
    return np.dstack([grey, grey[::-1], grey.T])


def three(grey):
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)


def stretched(grey, bits):
    """Values of a scanner that uses this number of bits."""
    return (grey.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_greys_of_fewer_bits(tmp_path, grey, bits, order):
    values = stretched(grey, bits)
    path = write(tmp_path / "a.tif", frame(values, order=order), order=order)
    np.testing.assert_array_equal(load(path), three(grey))
    path = write(
        tmp_path / "b.tif", frame((1 << bits) - 1 - values, WHITE_IS_ZERO, order), order=order
    )
    assert np.abs(load(path).astype(int) - three(grey)).max() <= 1
    cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_array_equal(load(tmp_path / "a.png"), three(grey))


@pytest.mark.parametrize("tag", [281, 341])
def test_the_tag_says_how_many_bits(tmp_path, grey, tag):
    """A dim page of 12 bits: its own largest value would mean 10."""
    values = stretched(grey, 12) // 5
    dim = np.rint(values / 4095 * 255)
    path = write(tmp_path / "a.tif", frame(values, {tag: 4095}))
    np.testing.assert_array_equal(load(path), three(dim))
    # A tag that the pixels contradict, and one that is only the default.
    for wrong in (255, 65535):
        path = write(tmp_path / "b.tif", frame(stretched(grey, 12), {tag: wrong}))
        np.testing.assert_array_equal(load(path), three(grey))


def test_fewer_bits_are_said_once(tmp_path, grey, monkeypatch, capsys):
    monkeypatch.setattr(sixteen_bits, "_SAID", set())
    for name in ("a.tif", "b.tif"):
        load(write(tmp_path / name, frame(stretched(grey, 10))))
    assert capsys.readouterr().out == (
        "a.tif: 10 of 16 bits are used (no value exceeds 1023); values are scaled as 10 bits, here "
        "and without a message on further pages of this kind\n"
    )
    load(write(tmp_path / "c.tif", frame(stretched(grey, 12), {281: 4095})))
    assert "c.tif: 12 of 16 bits are used (as the file says)" in capsys.readouterr().out
    load(write(tmp_path / "d.tif", frame(stretched(grey, 16))))
    assert capsys.readouterr().out == ""


def test_a_dark_page_keeps_its_bits_where_a_value_needs_them(tmp_path, grey):
    values = grey.copy()
    values[0, 0] = 16384
    page = load(write(tmp_path / "a.tif", frame(values)))
    assert page[0, 0, 0] == 64
    assert page.ravel()[3:].max() == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_16_bits(tmp_path, rgb, bits, planes, deflate, order):
    """The lower bytes are noise, as those of real scans are."""
    noise = np.random.default_rng(0).integers(0, 1 << (bits - 8), rgb.shape)
    values = ((rgb << (bits - 8)) + noise).astype(np.uint16)
    path = write(tmp_path / "a.tif", frame(values, None, order, planes, deflate), order=order)
    np.testing.assert_array_equal(load(path), rgb)


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits_in_png(tmp_path, rgb, bits):
    cv2.imwrite(str(tmp_path / "a.png"), (rgb << (bits - 8))[..., ::-1])
    np.testing.assert_array_equal(load(tmp_path / "a.png"), rgb)
    alpha = np.full_like(rgb[..., :1], (1 << bits) - 1)
    cv2.imwrite(str(tmp_path / "b.png"), np.dstack([(rgb << (bits - 8))[..., ::-1], alpha]))
    assert np.abs(load(tmp_path / "b.png").astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_a_page_on_its_side(tmp_path, rgb, bits, planes):
    """The tag Orientation (6: turn clockwise by 90 degrees)."""
    values = rgb[:, :9] << (bits - 8)
    path = write(tmp_path / "a.tif", frame(values, {274: 6}, planes=planes))
    np.testing.assert_array_equal(load(path), np.rot90(rgb[:, :9], -1))


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_an_alpha_channel_of_zeros_hides_nothing(tmp_path, rgb, kind, bits, planes):
    """Kind 1 is premultiplied alpha, 2 is not (tag ExtraSamples)."""
    values = rgb.astype(np.uint8) if bits == 8 else rgb << (bits - 8)
    values = np.dstack([values, np.zeros_like(values[..., :1])])
    path = write(tmp_path / "a.tif", frame(values, {338: kind}, planes=planes))
    np.testing.assert_array_equal(load(path), rgb)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_alpha_channel_of_zeros_in_png(tmp_path, rgb, mode):
    image = Image.fromarray(rgb.astype(np.uint8))
    expected = np.asarray(image.convert("L").convert("RGB"))
    if mode == "P":
        image = image.quantize(16)
        expected = np.asarray(image.convert("RGB"))
        image.save(tmp_path / "a.png", transparency=bytes(16))
    else:
        expected = np.asarray(image) if mode == "RGBA" else expected
        image = image.convert(mode)
        image.putalpha(0)
        image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path / "a.png"), expected)


def test_an_alpha_channel_with_one_opaque_pixel_counts(tmp_path, rgb):
    alpha = np.zeros((16, 16, 1), np.uint8)
    alpha[3, 3] = 255
    Image.fromarray(np.dstack([rgb.astype(np.uint8), alpha])).save(tmp_path / "a.png")
    page = load(tmp_path / "a.png")
    assert (page[3, 3] == rgb[3, 3]).all()
    assert (np.delete(page.reshape(256, 3), 51, axis=0) == 255).all()


@pytest.mark.parametrize(
    ("channels", "tags", "planes"),
    [(2, {}, False), (3, {258: [32] * 3}, True), (5, {262: 2}, True), (3, {339: [2] * 3}, True)],
)
def test_pixels_that_cannot_be_read_are_named(tmp_path, grey, channels, tags, planes):
    """Grey and alpha of 16 bits, colours of 32 bits, five colours, negative numbers."""
    path = write(tmp_path / "a.tif", frame(np.dstack([grey] * channels), tags, planes=planes))
    with pytest.raises(PageError, match=r"pixels of a kind that is not supported: \d+, "):
        load(path)


def test_strips_that_overlap_are_damage(tmp_path, rgb):
    fields, parts, inner = frame(rgb << 8, planes=True)
    path = write(tmp_path / "a.tif", (fields, parts, inner))
    data = path.read_bytes()
    counts = np.array([512] * 3, "<u4").tobytes()
    path.write_bytes(data.replace(counts, np.array([10**6] * 3, "<u4").tobytes()))
    with pytest.raises(PageError, match="damaged image"):
        load(path)
