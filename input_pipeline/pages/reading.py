"""Marks files that an earlier version of the program may have read in another way.

Stores, masks and embeddings are identified by the contents of their pages. Where the same file
gives other pixels than before, the mark makes them new; those of all other pages stay valid.
"""

from pathlib import Path

from saghog_jax.input_pipeline.pages import tiff

# Since version 2: thumbnails, bits really used, planes, white as zero, alpha channels of zeros.
_VERSION = "#read=2"
_PNG = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # places in the header of a PNG
_WITH_ALPHA = (4, 6)


def mark(file: Path) -> str:
    """The mark of a TIFF and of a PNG of 16 bits or with an alpha channel; empty for others."""
    suffix = file.suffix.lower()
    if suffix in tiff.SUFFIXES:
        return _VERSION
    if suffix != ".png":
        return ""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_COLOUR_TYPE + 1)
    except OSError:
        return ""
    changed = (
        head.startswith(_PNG)
        and len(head) > _COLOUR_TYPE
        and (head[_BIT_DEPTH] == 16 or head[_COLOUR_TYPE] in _WITH_ALPHA)
    )
    return _VERSION if changed else ""
