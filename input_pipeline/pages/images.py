"""Reads page images as RGB arrays: all pixel types that scanners write; damaged files are refused.

Transparent parts become white unless the whole page is transparent, values of 16 bits are scaled to
8 bits, and the EXIF orientation is applied. A path may name one image of a file of several, or turn
an image (see `frames`); otherwise the first image in full resolution is read.
"""

import functools
import importlib
import os
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.file_kinds import HEAD, can_read_heic, no_image
from saghog_jax.input_pipeline.pages import frames, sixteen_bits, tiff, tiff_images
from saghog_jax.input_pipeline.pages.file_ends import check_end
from saghog_jax.input_pipeline.pages.pixel_limit import pillow_limit_lifted

# Formats that Pillow may read. Formats that run other programs (EPS) are excluded.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_page(
    path: Path, box: tuple[int, int, int, int] | None, max_pixels: int, scale: float = 1.0
) -> np.ndarray:
    """Reads a page.

    Args:
      path: image file; its ending may be that of one image, or of a turned image (see `frames`).
      box: only this part is returned: x0, y0, x1, y1 in pixels of the upright image, the last two
        exclusive. None: the whole image.
      max_pixels: largest accepted width x height, before and after scaling; checked in the
        file's header, before the image is decoded.
      scale: the page is resized by this factor, with cubic interpolation.

    Returns:
      uint8 [h, w, 3], RGB.

    Raises:
      PageError: the file or the box cannot be used; the message is one line.
    """
    view = frames.parse(path.name)
    try:
        with open(path.with_name(view.file), "rb") as file, pillow_limit_lifted():
            page = _read(file, max_pixels, view.frame)
    except PageError:
        raise
    except MemoryError:
        raise PageError("too little memory to decode the image") from None
    # Pillow raises many kinds of exceptions for damaged files; none of them is a bug of this
    # program.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise PageError(f"cannot read the file: {error.strerror}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PageError(f"damaged image: {reason}") from None
    page = _turned(page, view.mirrored, view.degrees, max_pixels)
    if box is not None:
        page = crop(page, box)
    return np.ascontiguousarray(resize_page(page, scale, max_pixels))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header.

    Raises:
      PageError: the file cannot be read as an image.
    """
    try:
        with open(path, "rb") as file:
            chosen = tiff_images.choose(file, None) if tiff.is_tiff(file) else None
            if chosen is not None:
                (w, h), orientation = chosen.size, chosen.value(tiff.ORIENTATION, 1)
            else:
                with pillow_limit_lifted(), Image.open(file, formats=_known_formats()) as image:
                    (w, h), orientation = image.size, _orientation(image)
    # As above.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PageError(f"cannot read the size of the image: {reason}") from None
    return (h, w) if orientation in (5, 6, 7, 8) else (w, h)


def page_array(image: str | os.PathLike | Image.Image | np.ndarray, max_pixels: int) -> np.ndarray:
    """A page as an array, uint8 [h, w, 3], RGB, from a path, a PIL image or an array.

    Args:
      image: a path, a PIL image (its EXIF orientation is applied), or an array uint8 [h, w, 3]
        (RGB) or [h, w] (grey).
      max_pixels: largest accepted width x height.

    Raises:
      PageError: the image cannot be read, is too large, or is an array of another dtype or shape.
    """
    if isinstance(image, str | os.PathLike):
        return load_page(Path(image), None, max_pixels)
    if isinstance(image, Image.Image):
        _check_size(*image.size, max_pixels)
        return np.ascontiguousarray(_rgb(_upright(image)))
    page = np.asarray(image)
    if page.dtype != np.uint8 or page.ndim not in (2, 3) or page.shape[2:] not in ((), (3,)):
        raise PageError(
            f"a page must be uint8 [h, w, 3] (RGB) or [h, w] (grey), got {page.dtype} "
            f"{list(page.shape)}"
        )
    _check_size(page.shape[1], page.shape[0], max_pixels)
    page = page if page.ndim == 3 else np.repeat(page[:, :, None], 3, axis=2)
    return np.ascontiguousarray(page)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise PageError(
            f"{width} x {height} pixels are more than data.max_pixels={max_pixels} allows"
        )


def _read(file: BinaryIO, max_pixels: int, frame: int | None) -> np.ndarray:
    """One image of an open file, upright; without a number the first in full resolution."""
    if not file.read(1):
        raise PageError("an empty file (0 bytes)")
    file.seek(0)
    if tiff.is_tiff(file):
        chosen = tiff_images.choose(file, frame)
        if chosen is not None:
            return _read_tiff(file, chosen, max_pixels)
    try:
        image = Image.open(file, formats=_known_formats())
    except Image.UnidentifiedImageError:
        file.seek(0)
        raise PageError(no_image(file.read(HEAD))) from None
    _check_size(*image.size, max_pixels)
    if frame is not None and frame > 1:
        _seek(image, frame)
    check_end(file, image.format or "")
    wide = _has_wide_colours(image)
    image.load()
    if wide and _is_dark(image):
        file.seek(0)
        coded = np.frombuffer(file.read(), np.uint8)
        values = tiff_images.rgb_values(cv2.imdecode(coded, cv2.IMREAD_UNCHANGED), image.size)
        image = _narrowed(values, _orientation(image), 0, file.name)
    return _rgb(_upright(image), name=file.name)


def _read_tiff(file: BinaryIO, chosen: tiff.Directory, max_pixels: int) -> np.ndarray:
    _check_size(*chosen.size, max_pixels)
    image = tiff_images.open_image(file, chosen, file.name)
    _check_size(*image.size, max_pixels)
    wide, premultiplied = _has_wide_colours(image), "RGBa" in _tiles(image)
    image.load()
    largest = tiff_images.declared_maximum(chosen)
    if (wide and _is_dark(image)) or (premultiplied and not image.getchannel("A").getextrema()[1]):
        values, orientation = (
            tiff_images.raw_values(file, chosen),
            chosen.value(tiff.ORIENTATION, 1),
        )
        image = _narrowed(values, orientation, largest, file.name)
    return _rgb(_upright(image), largest, tiff_images.white_is_zero(chosen), file.name)


def _seek(image: Image.Image, frame: int) -> None:
    count = getattr(image, "n_frames", 1)
    if frame > count:
        raise PageError(f"the file has {count} images, and none with the number {frame}")
    image.seek(frame - 1)


def _tiles(image: Image.Image) -> str:
    """How Pillow will decode the image; empty if it is decoded."""
    return str(getattr(image, "tile", ""))


def _has_wide_colours(image: Image.Image) -> bool:
    """Whether colours are stored with 16 bits; Pillow keeps the upper 8."""
    return image.mode in ("RGB", "RGBA", "LA") and ";16" in _tiles(image)


def _is_dark(image: Image.Image) -> bool:
    """Whether the upper 8 of 16 bits are small, so that the image may use fewer bits."""
    bands = [image.getchannel(name) for name in image.getbands() if name != "A"]
    return max(band.getextrema()[1] for band in bands) < 64


def _narrowed(values: np.ndarray, orientation: int, declared: int, name: str) -> Image.Image:
    """An image of these values, uint8 or uint16 [h, w, 3 or 4], with this EXIF orientation."""
    if values.dtype == np.uint16:
        largest = int(values[:, :, :3].max())
        bits = sixteen_bits.significant_bits(largest, declared, name)
        values = sixteen_bits.colours_to_bytes(values, bits)
    narrow = Image.fromarray(np.ascontiguousarray(values))
    narrow.getexif()[ExifTags.Base.Orientation] = orientation
    return narrow


def _upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied."""
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """The members of _FORMATS that this build of Pillow, with its plug-ins, can read."""
    Image.init()
    if can_read_heic():
        pillow_heif = importlib.import_module("pillow_heif")
        pillow_heif.register_heif_opener(thumbnails=False)
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if the metadata cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    # A page with broken metadata is still usable.
    except Exception:
        return 1


def _rgb(
    image: Image.Image, declared: int = 0, white_is_zero: bool = False, name: str = "an image"
) -> np.ndarray:
    """uint8 [h, w, 3] of an image of any mode.

    Args:
      declared, name: see `sixteen_bits.significant_bits`.
      white_is_zero: the file says so; Pillow obeys this up to 8 bits.
    """
    if image.mode == "F":
        raise PageError("pixels are floating-point numbers; save the page with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PageError("pixels are 32-bit numbers; save the page with 8 or 16 bits")
        bits = sixteen_bits.significant_bits(int(values.max()), declared, name)
        grey = sixteen_bits.grey_to_bytes(values, bits, white_is_zero)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        # Some programs write an alpha channel that is zero everywhere: it says nothing.
        if whole.getchannel("A").getextrema()[1]:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), whole)
        else:
            image = whole
    return np.asarray(image.convert("RGB"))


def _turned(page: np.ndarray, mirrored: bool, degrees: float, max_pixels: int) -> np.ndarray:
    """The page mirrored left to right, then turned clockwise; new corners are white."""
    page = page[:, ::-1] if mirrored else page
    if degrees % 90 == 0:
        return np.rot90(page, -int(degrees // 90))
    h, w = page.shape[:2]
    turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 1.0)
    wide, high = (round(float(side)) for side in np.abs(turn[:, :2]) @ (w, h))
    _check_size(wide, high, max_pixels)
    turn[:, 2] += (wide - w) / 2, (high - h) / 2
    white = (255, 255, 255)
    return cv2.warpAffine(
        np.ascontiguousarray(page), turn, (wide, high), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=white,
    )  # fmt: skip


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) if it cannot be read.

    It is 1 too if the path turns the image (see `frames`).
    """
    view = frames.parse(path.name)
    if view.mirrored or view.degrees:
        return 1
    try:
        with open(frames.file_of(path), "rb") as file:
            chosen = tiff_images.choose(file, view.frame) if tiff.is_tiff(file) else None
            if chosen is not None:
                return chosen.value(tiff.ORIENTATION, 1)
            with Image.open(file, formats=_known_formats()) as image:
                return _orientation(image)
    # Pillow raises many kinds of exceptions for damaged files.
    except Exception:
        return 1


def crop(page: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part x0, y0, x1, y1 of a page [h, w, ...], as a view.

    Raises:
      PageError: the box does not lie inside the page.
    """
    x0, y0, x1, y1 = box
    height, width = page.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise PageError(
            f"the box {x0},{y0},{x1},{y1} does not lie in the image of {width} x {height} pixels"
        )
    return page[y0:y1, x0:x1]


def resize_page(page: np.ndarray, scale: float, max_pixels: int) -> np.ndarray:
    """Resizes a page uint8 [h, w, 3] by a factor, with cubic interpolation; a factor of 1 is free.

    Raises:
      PageError: the resized page would have no pixel, or more than `max_pixels`.
    """
    if scale == 1.0:
        return page
    height, width = (round(side * scale) for side in page.shape[:2])
    if min(height, width) < 1 or height * width > max_pixels:
        raise PageError(
            f"scaled by {scale} the page has {width} x {height} pixels; at least 1 x 1 and at "
            f"most data.max_pixels={max_pixels} are allowed"
        )
    return cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
