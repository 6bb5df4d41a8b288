"""Scales numbers of more than 8 bits to 8 bits, by the bits that an image really uses.

Scanners store 10, 12 or 14 bits in 16. Read as 16 bits, such a page is nearly black.
"""

import logging
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

# Numbers of significant bits that scanners and cameras have.
_DEPTHS = (8, 10, 12, 14, 16)
# Depths that this process has named, so that a volume of thousands of pages leads to one line.
_SAID: set[int] = set()


def significant_bits(largest: int, declared: int, name: str) -> int:
    """Number of bits that the values of an image use.

    Args:
      largest: largest value in the image, at most 65535.
      declared: largest possible value that the file states (tags MaxSampleValue, SMaxSampleValue);
        0 if it states none. 65535 says nothing: it is the tag's default.
      name: path of the file, for the message about values of less than 16 bits.

    Returns:
      the smallest of 8, 10, 12, 14 and 16 that holds the stated value, or without one the largest
      value; 15 if 32767 is stated.
    """
    stated = declared if largest <= declared < 65535 else largest
    depths = (*_DEPTHS, 15) if stated == declared else _DEPTHS
    bits = min(depth for depth in depths if stated < 1 << depth)
    if bits < 16:
        _say(
            bits, "as the file says" if stated == declared else f"no value exceeds {largest}", name
        )
    return bits


def _say(bits: int, why: str, name: str) -> None:
    if bits not in _SAID:
        _SAID.add(bits)
        logger.warning(
            f"{Path(name).name}: {bits} of 16 bits are used ({why}); values are scaled as "
            f"{bits} bits, here and without a message on further pages of this kind"
        )


def grey_to_bytes(values: np.ndarray, bits: int, white_is_zero: bool = False) -> np.ndarray:
    """Greys of a number of bits as uint8, rounded.

    Args:
      values: integers [h, w], 0 ... 2**bits - 1.
      white_is_zero: 0 is white, as in the negatives of the tag PhotometricInterpretation.
    """
    white = (1 << bits) - 1
    scaled = (values.astype(np.int64) * 255 + white // 2) // white
    return (255 - scaled if white_is_zero else scaled).astype(np.uint8)


def colours_to_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Colours of a number of bits as uint8: the upper 8 bits, as Pillow takes them.

    Args:
      values: uint16 [h, w, c], 0 ... 2**bits - 1; an alpha channel may exceed this.
    """
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8)
