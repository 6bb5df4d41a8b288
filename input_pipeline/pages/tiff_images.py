"""Opens one image of a TIFF so that Pillow decodes it rightly, or says why it cannot be read."""

from dataclasses import replace
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages import sixteen_bits, tiff

_WHITE_IS_ZERO, _RGB, _CMYK = 0, 2, 5
# Mode of an image whose planes are read one by one, by photometric interpretation and samples.
_PLANE_MODES = {(1, 2): "LA", (_RGB, 3): "RGB", (_RGB, 4): "RGBA", (_CMYK, 4): "CMYK"}


def choose(file: BinaryIO, number: int | None) -> tiff.Directory | None:
    """The image with this number, or the first in full resolution.

    Returns:
      None if no directory can be read; Pillow then says why.

    Raises:
      PageError: there is no image with this number.
    """
    found = tiff.directories(file)
    if number is None:
        return tiff.pages(found)[0] if found else None
    if number > len(found):
        raise PageError(f"the file has {len(found)} images, and none with the number {number}")
    chosen = found[number - 1]
    full = [child for child in chosen.children if not child.is_reduced]
    return full[0] if full else chosen


def open_image(file: BinaryIO, chosen: tiff.Directory, name: str) -> Image.Image:
    """The image of a directory; it is decoded by its method `load` (planes of 16 bits: at once).

    Raises:
      PageError: pixels of this kind cannot be read.
    """
    bits = set(chosen.values(tiff.BITS))
    in_planes = chosen.value(tiff.PLANES, 1) == 2 and chosen.value(tiff.SAMPLES, 1) > 1
    # Pillow decodes uncompressed planes of 16 bits as if they had 8, and loses the colours of
    # premultiplied planes whose alpha channel is zero.
    if in_planes and (bits == {16} or (bits == {8} and _is_premultiplied(chosen))):
        return _planes(file, chosen, name)
    if not chosen.inner:
        try:
            file.seek(0)
            image = Image.open(file, formats=("TIFF",))
            image.seek(chosen.number - 1)
            return image
        # Pillow does not know the pixels of this image, or of an earlier one.
        except (UnidentifiedImageError, SyntaxError, EOFError):
            pass
    try:
        # Pillow knows greys of 16 bits with white as zero in one byte order only.
        black_is_zero = white_is_zero(chosen) and max(bits, default=1) > 8
        return Image.open(
            tiff.extract(file, chosen, black_is_zero=black_is_zero), formats=("TIFF",)
        )
    except UnidentifiedImageError:
        raise PageError(_unknown(chosen)) from None


def white_is_zero(chosen: tiff.Directory) -> bool:
    """Whether 0 is white."""
    return chosen.value(tiff.PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def _is_premultiplied(chosen: tiff.Directory) -> bool:
    return chosen.values(tiff.EXTRA_SAMPLES) == (1,)


def declared_maximum(chosen: tiff.Directory) -> int:
    """Largest possible value by the tags MaxSampleValue and SMaxSampleValue; 0 if neither says."""
    for tag in (tiff.MAX_VALUE, tiff.LARGEST_VALUE):
        values = [int(value) for value in chosen.values(tag) if isinstance(value, int | float)]
        if values and 0 < max(values) <= 65535:
            return max(values)
    return 0


def raw_values(file: BinaryIO, chosen: tiff.Directory) -> np.ndarray:
    """The values of an image that stores its colours side by side, uint8 or uint16 [h, w, 3 or 4].

    They are not turned upright.

    Raises:
      PageError: OpenCV cannot read the image.
    """
    # Without the tag, since versions of OpenCV differ in whether they turn the image.
    fields = {tag: entry for tag, entry in chosen.fields.items() if tag != tiff.ORIENTATION}
    as_stored = replace(chosen, fields=fields)
    data = np.frombuffer(tiff.extract(file, as_stored).getbuffer(), np.uint8)
    return rgb_values(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), chosen.size)


def rgb_values(values: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """RGB or RGBA of an image as OpenCV reads it.

    Raises:
      PageError: OpenCV did not read such an image of this width and height.
    """
    if values is None or values.ndim != 3 or values.shape[1::-1] != size:
        raise PageError("colours of this kind cannot be read; save the page with 8 bits a colour")
    return values[:, :, [2, 1, 0, 3][: values.shape[2]]]


def _planes(file: BinaryIO, chosen: tiff.Directory, name: str) -> Image.Image:
    """An image whose colours are stored one after the other, 8 or 16 bits each."""
    samples = chosen.value(tiff.SAMPLES, 1)
    mode = _PLANE_MODES.get((chosen.value(tiff.PHOTOMETRIC, 1), samples))
    if mode is None or chosen.value(tiff.SAMPLE_FORMAT, 1) != 1:
        raise PageError(_unknown(chosen))
    planes = []
    for plane in range(samples):
        with Image.open(tiff.extract(file, chosen, plane=plane), formats=("TIFF",)) as image:
            # Pillow turns each plane upright.
            planes.append(np.asarray(image).astype(np.uint16))
    values = np.dstack(planes)
    colours = samples - mode.endswith("A")
    largest = int(values[:, :, :colours].max())
    bits = 8
    if chosen.value(tiff.BITS) == 16:
        bits = sixteen_bits.significant_bits(largest, declared_maximum(chosen), name)
    # `fromarray` knows LA, RGB and RGBA by the number of bands.
    narrow = sixteen_bits.colours_to_bytes(values, bits)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(narrow, 2, 0)]
    if mode == "RGBA" and chosen.values(tiff.EXTRA_SAMPLES) == (0,):
        mode, bands = "RGB", bands[:3]  # a fourth channel that is no alpha channel
    if mode == "RGBA" and _is_premultiplied(chosen) and narrow[:, :, 3].any():
        return Image.merge("RGBa", bands).convert("RGBA")
    return Image.merge(mode, bands)


def _unknown(chosen: tiff.Directory) -> str:
    bits = ", ".join(map(str, chosen.values(tiff.BITS))) or "1"
    return (
        f"a TIFF with pixels of a kind that is not supported: {bits} bits, photometric "
        f"interpretation {chosen.value(tiff.PHOTOMETRIC, 1)}, compression "
        f"{chosen.value(tiff.COMPRESSION, 1)}; save the page as RGB or grey with 8 bits"
    )
