"""Places a mask on its page, also if it was drawn on the image before the image was turned.

Cameras store an image as the sensor saw it, and write into the file (EXIF orientation) how it is to
be turned. Pages are read upright. Many programs that draw regions ignore the EXIF orientation, so
their mask must be turned like the image. The proportions of the mask often tell which kind it is.
If they do not (the image stands on its head, or is a square), the page tells: the strokes lie in
the mask.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import crop, orientation
from saghog_jax.input_pipeline.regions.backends import Place

# Relative tolerance between width / height of a mask and of its image, for rounding.
_SKEW = 0.01
# How an image is turned upright, by its EXIF orientation.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.T, 2),
    8: np.rot90,
}
_TRANSPOSED = (5, 6, 7, 8)
# A difference of this fraction of the strokes is clear. Where it is smaller, a mask in the wrong
# place loses no more than this fraction.
_CLEAR = 0.05
# The strokes are looked at on a page shrunk to this longer side in pixels.
_SIDE = 1000


def place_mask(
    draw: Callable[[tuple[int, int]], np.ndarray],
    size: Sequence[float],
    image: np.ndarray,
    place: Place,
    what: str,
) -> tuple[np.ndarray, int]:
    """The mask of a page in the upright image.

    Args:
      draw: draws the mask in an image of this shape (h, w), uint8 [h, w] of 0 and 1.
      size: height and width that the mask refers to, in any unit.
      image: the page, uint8 [h, w, 3].
      place: the page's place in its file.
      what: names the mask in the error.

    Returns:
      the mask bool [h, w] of the page (of its box), and the EXIF orientation by which it was
      turned; 1 if it was not turned.

    Raises:
      PageError: the proportions are neither those of the page nor those of the image as stored.
    """
    how = orientation(place.image) if place.image else 1
    if how not in _UPRIGHT:
        check_proportions(size, place.shape, what)
        return _page(draw(place.shape), place), 1
    stored = place.shape[::-1] if how in _TRANSPOSED else place.shape
    if not fits(size, stored):
        check_proportions(size, place.shape, what)
        return _page(draw(place.shape), place), 1
    turned = _page(_UPRIGHT[how](draw(stored)), place)
    if fits(size, place.shape):
        straight = _page(draw(place.shape), place)
        if _strokes_inside(image, straight) > _strokes_inside(image, turned) + _CLEAR:
            return straight, 1
    return turned, how


def turned_meta(how: int) -> dict[str, int]:
    """The entry for the mask's JSON file: by which EXIF orientation it was turned, if at all."""
    return {} if how == 1 else {"turned_by_orientation": how}


def check_proportions(size: Sequence[float], page: Sequence[int], what: str) -> None:
    """Raises PageError if a size (h, w) is not the page's size at any resolution."""
    if not fits(size, page):
        raise PageError(
            f"{what} has {size[1]:g} x {size[0]:g} pixels; the page has other proportions, "
            f"{page[1]} x {page[0]}"
        )


def fits(size: Sequence[float], shape: Sequence[int]) -> bool:
    """Whether a size (h, w) has the proportions of a shape (h, w)."""
    skew = (size[0] * shape[1]) / (size[1] * shape[0])
    return 1 - _SKEW <= skew <= 1 + _SKEW


def _page(whole: np.ndarray, place: Place) -> np.ndarray:
    return (whole if place.box is None else crop(whole, place.box)) > 0


def _strokes_inside(image: np.ndarray, mask: np.ndarray) -> float:
    """Fraction of the page's strokes in a mask, minus the mask's fraction of the page: -1 to 1."""
    factor = min(1.0, _SIDE / max(mask.shape))
    size = [max(1, round(side * factor)) for side in mask.shape[::-1]]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    contrast = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    # Without the grain of the paper.
    strokes = np.maximum(contrast - 2 * contrast.mean(), 0)
    return float(strokes[inside].sum() / max(strokes.sum(), 1e-6) - inside.mean())
