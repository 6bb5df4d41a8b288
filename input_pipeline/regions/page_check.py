"""What a page shows before it is cut: dark or light writing, or none.

Two questions, answered from the grey page alone:

* Polarity: in windows with contrast, what share of the pixels is darker than the middle between
  the darkest and the lightest pixel of the window? Strokes cover less than half of their windows,
  so dark strokes give a small share and light strokes a large one. Noise and grain give one half.
* Writing: how many pixels lie in strokes, which differ clearly from the median around them, have a
  sharp edge and are no straight lines? A page without enough of them has no writing.

Light writing on dark ground is inverted, so all later steps see dark writing on light ground.
Axes: h, w, c image height, width, channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.errors import NoWritingError, check_choice
from saghog_jax.input_pipeline.pages.manifest import AUTO, DARK_ON_LIGHT, LIGHT_ON_DARK, POLARITIES
from saghog_jax.input_pipeline.regions.ink import sheet

# Part of every digest of masks, stores and embeddings. Increased whenever a page is judged
# differently.
VERSION = 1
# The remark on an inverted page in tables and messages.
INVERTED = "light writing on dark ground, inverted"
# Inverted pages that a line names.
_NAMED = 5
# Larger pages are shrunk until their shorter side has this many pixels.
_SIDE = 1400
# Windows in which the share of dark pixels is counted: side in pixels, least difference between the
# lightest and the darkest pixel, and the least number of pixels in such windows.
_WINDOW, _CONTRAST, _ENOUGH = 93, 30, 450
# Every _STEP-th pixel of a row and of a column is used where all pixels would give the same.
_STEP = 3
# Shares of dark pixels of written pages: at most _DARK for dark writing, at least _LIGHT for light
# writing. In between are noise and grain; such a page has writing only if its dark strokes have
# _ONE_SIDED times as many pixels as its light ones.
_DARK, _LIGHT, _ONE_SIDED = 0.45, 0.55, 3
# The ground of light writing is darker than this.
_DARK_GROUND = 150
# The ground at a pixel is the median of a square around it: its side as a fraction of the page's
# shorter side, and its limits in pixels.
_GROUND, _GROUND_RANGE = 1 / 10, (84, 508)
# Least difference between stroke and ground, and least change of grey at the edge of a stroke, over
# two pixels: fractions of what the ground's grey value allows, and grey values.
_STROKE, _SHARP = 0.15, 12
# Smallest stroke: longer and shorter side of its box, and pixels.
_LONG, _SHORT, _AREA = 8, 4, 12
# A stroke that is longer than _LINE pixels and has less than _FOLDS times the length of the
# diagonal of its box is a straight line: a ruled line or the edge of a sheet.
_LINE, _FOLDS = 50, 1.5
# Least number of pixels in strokes: a fraction of the page, and the smaller of a number and a
# larger fraction for small pages.
_LEAST, _LEAST_PIXELS, _LEAST_SMALL = 0.0004, 600, 0.012


class Writing(NamedTuple):
    """What a page shows.

    polarity: `dark_on_light` or `light_on_dark`.
    strokes: pixels of the (shrunken) page in strokes of that polarity.
    least: pixels in strokes that a page with writing has at least.
    """

    polarity: str
    strokes: int
    least: float

    @property
    def found(self) -> bool:
        """Whether the page has writing."""
        return self.strokes >= self.least


def checked_page(image: np.ndarray, polarity: str = AUTO) -> tuple[np.ndarray, bool]:
    """The page as it is cut: dark writing on light ground.

    Args:
      image: uint8 [h, w, 3], RGB.
      polarity: one of `POLARITIES`; `auto` finds it. A page whose polarity is stated is used even
        if no writing of either polarity is found on it.

    Returns:
      the image itself, or an inverted copy, and whether it was inverted. The clear frame of a film
      around an inverted page is filled with the colour of the paper.

    Raises:
      NoWritingError: the page has no writing, or writing of the other polarity alone.
      UserError: an unknown polarity.
    """
    grey = to_grey(image, "opencv")
    writing = find_writing(grey, polarity)
    other = DARK_ON_LIGHT if polarity == LIGHT_ON_DARK else LIGHT_ON_DARK
    if not writing.found and (polarity == AUTO or find_writing(grey, other).found):
        raise NoWritingError(
            f"no writing: {writing.strokes:,} pixels lie in strokes, at least {writing.least:,.0f} "
            "are needed (a blank page; if it has writing, state its polarity, and it is used)"
        )
    if writing.polarity == DARK_ON_LIGHT:
        return image, False
    return _without_frame(255 - image), True


def note_inverted(page_ids: Sequence[str], log: Callable[[str], None]) -> None:
    """Says which pages were inverted, in one line; nothing without such pages."""
    if not page_ids:
        return
    named, more = " ".join("; ".join(page_ids[:_NAMED]).split()), len(page_ids) - _NAMED
    log(
        f"{len(page_ids):,} pages have {INVERTED}: {named}"
        + (f"; and {more:,} more" if more > 0 else "")
        + " (the manifest's column `polarity` corrects a page, data.polarity all pages)"
    )


def find_writing(grey: np.ndarray, polarity: str = AUTO) -> Writing:
    """Finds the polarity of a page uint8 [h, w] and counts the pixels of its strokes.

    Raises:
      UserError: an unknown polarity.
    """
    check_choice("polarity", polarity, POLARITIES)
    factor = _SIDE / min(grey.shape)
    if factor < 1:
        size = [max(1, round(side * factor)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    least = max(_LEAST * grey.size, min(_LEAST_PIXELS, _LEAST_SMALL * grey.size))
    smooth = cv2.GaussianBlur(grey, (3, 3), 0)
    share, middle = dark_share(smooth)
    one_sided = share <= _DARK or share >= _LIGHT
    if polarity == AUTO:
        light = share >= _LIGHT and middle < _DARK_GROUND
        polarity = LIGHT_ON_DARK if light else DARK_ON_LIGHT
    if polarity == LIGHT_ON_DARK:
        smooth = 255 - smooth
    strokes = stroke_pixels(smooth)
    if not one_sided and strokes < _ONE_SIDED * stroke_pixels(255 - smooth):
        strokes = 0
    return Writing(polarity, strokes, least)


def dark_share(grey: np.ndarray) -> tuple[float, float]:
    """Share of dark pixels in the windows with contrast, and the median grey value there.

    Args:
      grey: uint8 [h, w].

    Returns:
      share and grey value; .5 and 255 where too few windows have contrast.
    """
    step = _STEP if min(grey.shape) >= _WINDOW else 1
    small = np.ascontiguousarray(grey[step // 2 :: step, step // 2 :: step])
    square = np.ones((_WINDOW // _STEP, _WINDOW // _STEP), np.uint8)
    low, high = cv2.erode(small, square), cv2.dilate(small, square)
    inside = cv2.subtract(high, low) >= _CONTRAST
    if np.count_nonzero(inside) < _ENOUGH // _STEP**2:
        return 0.5, 255.0
    values = small[inside]
    middle = (low[inside].astype(np.uint16) + high[inside]) / 2
    return float((values < middle).mean()), float(np.median(values))


def stroke_pixels(grey: np.ndarray) -> int:
    """Number of pixels in dark strokes of a page, uint8 [h, w]."""
    dark = _darker_than_ground(grey)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=8)
    if count == 1:
        return 0
    stats = stats[1:].astype(np.int64)
    width, height, area = (
        stats[:, column] for column in (cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA)
    )
    inner = cv2.erode(dark, np.ones((3, 3), np.uint8), borderValue=255)
    rim = (dark > 0) & (inner == 0)
    labels, steps = labels[rim], _steps(grey)[rim]
    around = np.bincount(labels, minlength=count)[1:].clip(1)
    sharpness = np.bincount(labels, weights=steps, minlength=count)[1:] / around
    # The rim runs along both sides of a stroke, or is all of a very thin one.
    length = area / np.maximum(2 * area / around, 1)
    diagonal = np.hypot(width, height)
    stroke = (np.maximum(width, height) >= _LONG) & (np.minimum(width, height) >= _SHORT)
    stroke &= (area >= _AREA) & (sharpness >= _SHARP)
    stroke &= (diagonal < _LINE) | (length >= _FOLDS * diagonal)
    return int(area[stroke].sum())


def _darker_than_ground(grey: np.ndarray) -> np.ndarray:
    """Mask, uint8 [h, w] of 0 and 255, of the pixels clearly darker than the ground around them."""
    h, w = grey.shape
    # A median of every fourth pixel is nearly the median of all.
    step = 4 if min(h, w) >= 64 else 1
    sparse = np.ascontiguousarray(grey[step // 2 :: step, step // 2 :: step])
    low, high = _GROUND_RANGE
    side = int(np.clip(min(h, w) * _GROUND, low, high) / step) | 1
    ground = cv2.resize(cv2.medianBlur(sparse, side), (w, h), interpolation=cv2.INTER_LINEAR)
    # The same difference for dark and for light strokes.
    least = cv2.convertScaleAbs(cv2.max(ground, 255 - ground), alpha=_STROKE)
    return cv2.compare(cv2.subtract(ground, grey), least, cv2.CMP_GE)


def _steps(grey: np.ndarray) -> np.ndarray:
    """Change of grey over two pixels, the larger of both directions: uint8 [h, w]."""
    padded = cv2.copyMakeBorder(grey, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    across = cv2.absdiff(padded[1:-1, 2:], padded[1:-1, :-2])
    down = cv2.absdiff(padded[2:, 1:-1], padded[:-2, 1:-1])
    return cv2.max(across, down)


def _without_frame(image: np.ndarray) -> np.ndarray:
    """An inverted page [h, w, 3] whose dark surroundings have the colour of its paper."""
    inside = sheet(to_grey(image, "opencv"), max(image.shape)) > 0
    if inside.all() or not inside.any():
        return image
    image[~inside] = np.median(image[inside][:: _STEP**2], axis=0).astype(np.uint8)
    return image
