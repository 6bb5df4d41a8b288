"""Reading pages: every pixel type, upright and on white; one-line errors for damaged files."""

import contextlib
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page

MAX_PIXELS = 10**6


def _load(path, box=None, max_pixels=MAX_PIXELS, scale=1.0):
    page = load_page(path, box, max_pixels, scale)
    assert page.dtype == np.uint8
    assert page.ndim == 3
    assert page.shape[2] == 3
    assert page.flags.c_contiguous
    return page


def _reason(path, **options):
    with pytest.raises(PageError) as caught:
        _load(path, **options)
    reason = str(caught.value)
    assert "\n" not in reason
    return reason


@pytest.fixture(scope="module")
def rgb():
    """A smooth image, so that the errors of lossy formats are small."""
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def noise():
    values = np.random.default_rng(0).normal(200, 30, (200, 300, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tif", "ppm", "webp", "jp2", "gif", "jpg", "avif"]
)
def test_formats(tmp_path, rgb, suffix):
    path = tmp_path / f"page.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(rgb).save(path, **options)
    page = _load(path)
    assert page.shape == rgb.shape
    # Largest error of lossy formats (and of the 256 colours of a GIF) on a smooth image.
    tolerance = {"gif": 40, "jpg": 12, "avif": 25}.get(suffix, 0)
    assert np.abs(page.astype(int) - rgb).max() <= tolerance


def test_one_bit(tmp_path):
    bits = np.random.default_rng(0).random((30, 41)) < 0.5
    for name, options in (("a.png", {}), ("a.tif", {"compression": "group4"}), ("a.pbm", {})):
        Image.fromarray(bits).save(tmp_path / name, **options)
        page = _load(tmp_path / name)
        np.testing.assert_array_equal(page, np.repeat(bits[..., None] * 255, 3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, name):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    cv2.imwrite(str(tmp_path / name), values)
    page = _load(tmp_path / name)
    np.testing.assert_array_equal(page[..., 0], np.rint(values / 257))
    np.testing.assert_array_equal(page[..., 0], page[..., 2])


def test_sixteen_bit_big_endian(tmp_path):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(">u2")
    image = Image.frombytes("I;16B", (60, 40), values.tobytes())
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(_load(tmp_path / "a.tif")[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_colour(tmp_path, rgb, name):
    cv2.imwrite(str(tmp_path / name), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(_load(tmp_path / name), rgb)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk(tmp_path, rgb, name):
    cmyk = Image.fromarray(rgb).convert("CMYK")
    cmyk.save(tmp_path / name, **({"quality": 95} if name == "a.jpg" else {}))
    assert np.abs(_load(tmp_path / name).astype(int) - rgb).max() <= 12


def test_palette(tmp_path, rgb):
    image = Image.fromarray(rgb).quantize(16)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(_load(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P-bytes", "RGB", "L"])
def test_transparent_parts_are_white_paper(tmp_path, mode):
    """Dark ink on a transparent ground that would be black without its alpha channel."""
    ink = np.zeros((20, 30), bool)
    ink[5:15, 10:20] = True
    path = tmp_path / "a.png"
    grey = np.where(ink, 60, 0).astype(np.uint8)
    if mode in ("RGBA", "LA"):
        rgba = np.dstack([grey, grey, grey, np.where(ink, 255, 0).astype(np.uint8)])
        Image.fromarray(rgba).convert(mode).save(path)
    elif mode.startswith("P"):
        image = Image.fromarray(ink.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 60, 60, 60])
        image.save(path, transparency=bytes([0, 255]) if mode == "P-bytes" else 0)
    elif mode == "RGB":
        Image.fromarray(np.dstack([grey] * 3)).save(path, transparency=(0, 0, 0))
    else:
        Image.fromarray(grey).save(path, transparency=0)
    expected = np.where(ink, 60, 255).astype(np.uint8)
    np.testing.assert_array_equal(_load(path), np.dstack([expected] * 3))


def test_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.abs(_load(tmp_path / "a.png").astype(int) - 127).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.full((24, 48, 3), 255, np.uint8)
    upright[:8, :16] = 0
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    page = _load(tmp_path / f"a.{suffix}")
    assert page.shape == upright.shape
    assert np.abs(page.astype(int) - upright).max() <= 2
    # A box refers to the upright image.
    assert _load(tmp_path / f"a.{suffix}", box=(0, 0, 16, 8)).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_metadata_loses_no_page(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff rubbish")
    assert _load(tmp_path / "a.jpg").shape == rgb.shape


def test_first_frame_of_several(tmp_path, rgb):
    first, second = Image.fromarray(rgb), Image.fromarray(255 - rgb[:10, :10])
    for name in ("a.tif", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames = [second] if name == "a.tif" else [Image.fromarray(255 - rgb)]
        first.save(tmp_path / name, save_all=True, append_images=frames, **options)
        np.testing.assert_array_equal(_load(tmp_path / name), rgb)


def test_box(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_load(tmp_path / "a.png", box=(3, 5, 60, 40)), rgb[5:40, 3:60])
    for box in ((0, 0, 61, 40), (0, 0, 60, 41), (70, 50, 80, 60), (-1, 0, 5, 5), (5, 5, 5, 9)):
        reason = _reason(tmp_path / "a.png", box=box)
        assert ",".join(map(str, box)) in reason
        assert "60 x 40" in reason


def test_scale(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    half = _load(tmp_path / "a.png", box=(10, 10, 50, 30), scale=0.5)
    expected = cv2.resize(rgb[10:30, 10:50], (20, 10), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(half, expected)
    assert "0 x 0" in _reason(tmp_path / "a.png", scale=0.001)
    assert "max_pixels=1000000" in _reason(tmp_path / "a.png", scale=100.0)


@pytest.mark.parametrize("name", ["a b.png", 'it\'s "so".png', "line\nbreak.png", "手稿_Ω_ñ.png"])
def test_any_file_name(tmp_path, rgb, name):
    Image.fromarray(rgb).save(tmp_path / name)
    np.testing.assert_array_equal(_load(tmp_path / name), rgb)


# Bad files


def _jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_jpeg(tmp_path, noise, share, progressive):
    data = _jpeg(noise, progressive=progressive)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged image" in _reason(path)


def test_jpeg_with_a_tail_of_zeros(tmp_path, noise):
    """As after a broken download with preallocated space: Pillow alone would show flat bars."""
    data = _jpeg(noise)
    half = len(data) // 2
    (tmp_path / "a.jpg").write_bytes(data[:half] + bytes(half))
    assert "end of the JPEG is missing" in _reason(tmp_path / "a.jpg")


def test_a_jpeg_with_more_after_its_end_is_fine(tmp_path, noise):
    """Cameras append previews and notes."""
    (tmp_path / "a.jpg").write_bytes(_jpeg(noise) + b"\xff\xda trailer" + bytes(500))
    assert _load(tmp_path / "a.jpg").shape == noise.shape


def test_a_thumbnail_does_not_stand_for_the_end(tmp_path, noise):
    exif = b"Exif\0\0" + _jpeg(noise[:16, :16])
    data = _jpeg(noise, exif=exif)
    half = len(data) // 2
    (tmp_path / "a.jpg").write_bytes(data[:half] + bytes(half))
    assert "end of the JPEG is missing" in _reason(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jp2", "gif", "bmp", "ppm", "avif"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.95])
def test_truncated_files_of_other_formats(tmp_path, noise, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert _reason(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jp2", "gif", "bmp", "ppm", "jpg"])
def test_damaged_bytes_never_end_the_program(tmp_path, noise, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise[:40, :40]).save(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(40):
        changed = data.copy()
        changed[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
        path.write_bytes(changed.tobytes())
        with contextlib.suppress(PageError):
            _load(path)


def test_a_text_file_named_png(tmp_path):
    (tmp_path / "a.png").write_text("not a picture\n" * 50)
    assert "not an image" in _reason(tmp_path / "a.png")


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "not an image" in _reason(tmp_path / "a.png")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert "0 bytes" in _reason(tmp_path / "a.jpg")


def test_missing_file_folder_and_dangling_link(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "No such file" in _reason(tmp_path / "link.png")
    assert "No such file" in _reason(tmp_path / "gone.png")
    assert "Is a directory" in _reason(tmp_path)


def test_unreadable_permissions(tmp_path, rgb, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    path.chmod(0)
    if os.geteuid() == 0:  # the superuser reads everything

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in _reason(path)


def test_float_and_32_bit_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((5, 5), np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in _reason(tmp_path / "a.tif")
    Image.fromarray(np.full((5, 5), 70_000, np.int32)).save(tmp_path / "b.tif")
    assert "32-bit" in _reason(tmp_path / "b.tif")


def _png_of_size(width, height):
    """A PNG whose header promises this size, with next to no data."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)


def test_bombs_are_stopped_by_their_header(tmp_path, noise):
    (tmp_path / "a.png").write_bytes(_png_of_size(20_000, 20_000))
    reason = _reason(tmp_path / "a.png", max_pixels=200_000_000)
    assert reason == "20000 x 20000 pixels are more than data.max_pixels=200000000 allows"
    jpeg = bytearray(_jpeg(noise))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "a.jpg").write_bytes(jpeg)
    assert "60000 x 60000" in _reason(tmp_path / "a.jpg", max_pixels=200_000_000)


def test_the_limit_is_max_pixels_and_nothing_else(tmp_path):
    """Larger than Pillow's limit: max_pixels allows the size, so the error comes later."""
    (tmp_path / "a.png").write_bytes(_png_of_size(14_000, 14_000))
    assert "damaged image" in _reason(tmp_path / "a.png", max_pixels=14_000 * 14_000)
    Image.new("1", (100, 50)).save(tmp_path / "b.png")
    assert _load(tmp_path / "b.png", max_pixels=5000).shape == (50, 100, 3)
    assert "max_pixels=4999" in _reason(tmp_path / "b.png", max_pixels=4999)
