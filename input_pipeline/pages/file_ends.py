"""Notices image files whose end is missing or was filled with zeros by a broken download."""

from typing import BinaryIO

from saghog_jax.input_pipeline.errors import PageError

# The file of a flat image may end with 5 % of zero bytes; no file ends with as many as this.
_ZERO_BYTES, _ZERO_SHARE = 512, 0.2
_BLOCK = 1 << 20


def check_end(file: BinaryIO, image_format: str) -> None:
    """Rejects a JPEG, WebP or AVIF file whose end is missing; leaves the file where it was.

    Pillow notices truncated files, but decodes a JPEG, WebP or AVIF whose end was filled with zeros
    as flat bars. WebP (lossy) and AVIF of one tile have no checksum: other damage is not noticed.

    Args:
      image_format: the name that Pillow gives to the format; other formats are not checked.

    Raises:
      PageError: the end is missing.
    """
    start = file.tell()
    if image_format == "JPEG":
        # Pillow has read the header; the end-of-image marker must follow in the rest of the file.
        complete = b"\xff\xd9" in file.read()
    elif image_format in ("WEBP", "AVIF"):
        size = file.seek(0, 2)
        complete = _zeros_at_end(file, size) < max(_ZERO_BYTES, _ZERO_SHARE * size)
    else:
        return
    file.seek(start)
    if not complete:
        name = {"WEBP": "WebP"}.get(image_format, image_format)
        raise PageError(f"damaged image: the end of the {name} is missing")


def _zeros_at_end(file: BinaryIO, size: int) -> int:
    """Number of zero bytes at the end of a file of `size` bytes."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        kept = file.read(end - start).rstrip(b"\0")
        if kept:
            return size - start - len(kept)
        end = start
    return size
