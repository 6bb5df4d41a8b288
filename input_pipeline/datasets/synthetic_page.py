"""A page of the built-in corpus: draws pen strokes as ink, and ink on paper, with OpenCV."""

import cv2
import numpy as np

from saghog_jax.input_pipeline.datasets.synthetic_hand import Hand, Path, join_paths, write_line
from saghog_jax.input_pipeline.datasets.synthetic_text import pseudo_words

# Strokes are drawn this many times larger and then averaged, which smooths their edges.
OVERSAMPLING = 4
# Number of straight pieces that approximate a curve between two points.
PIECES = 5
# Fixed-point bits of the coordinates in calls of OpenCV.
SHIFT = 4


def lay_out(hand: Hand, shape: tuple[int, int], lines: int, rng: np.random.Generator) -> Path:
    """Writes a page of new text.

    Args:
      hand: the writer.
      shape: h, w of the page in pixels.
      lines: largest number of lines; fewer if the hand is too large, and up to three fewer at
        random.
      rng: of the page.
    """
    h, w = shape
    left, right = rng.uniform(0.02, 0.08, 2) * w
    top, bottom = 2.4 * hand.x_height, 1.4 * hand.x_height
    lines -= int(rng.integers(0, min(4, lines)))
    pitch = max((h - top - bottom) / lines, 2.6 * hand.x_height)
    pitch = min(pitch, hand.x_height * rng.uniform(3.0, 4.5))
    words = pseudo_words(lines * (w // 20 + 1), rng)
    paths = []
    y = top + rng.uniform(0, 0.4) * hand.x_height
    while len(paths) < lines and y < h - bottom:
        start = left + rng.uniform(-0.3, 0.3) * hand.x_height
        path, written = write_line(hand, words, start, y, w - right - start, rng)
        paths.append(path)
        words = words[written:]
        y += pitch * rng.uniform(0.95, 1.05)
    return join_paths(paths)


def trace(path: Path, roundness: float) -> tuple[np.ndarray, np.ndarray]:
    """Curves through the points of a path (cubic Hermite).

    Returns:
      float64 [s, PIECES + 1, 2], points on the s curves; and float64 [s], 1 for curves at an end of
      a stroke, 0 for curves inside.
    """
    p = path.points
    inside = ~path.start[1:]
    step = np.diff(p, axis=0)
    length = np.sqrt((step**2).sum(1))
    through = np.zeros_like(p)
    through[1:-1] = np.where((inside[1:] & inside[:-1])[:, None], p[2:] - p[:-2], 0)
    norm = np.sqrt((through**2).sum(1))
    through *= (path.smooth / np.where(norm > 0, norm, 1))[:, None]
    a, b, chord = p[:-1][inside], p[1:][inside], length[inside][:, None]
    start, end = through[:-1][inside] * chord, through[1:][inside] * chord
    t = np.linspace(0, 1, PIECES + 1)[:, None, None]
    curves = (
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * roundness * start
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * roundness * end
    )
    open_start = np.concatenate([[True], ~inside])[:-1][inside]
    open_end = np.concatenate([~inside, [True]])[1:][inside]
    return curves.transpose(1, 0, 2), np.maximum(open_start, open_end).astype(float)


def draw_ink(
    path: Path, hand: Hand, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Coverage by ink, uint8 [h, w], 255 for a fully covered pixel.

    Args:
      path: of the whole page.
      hand: pen, its angle, contrast and pressure.
      shape: h, w.
      rng: of the page, for random variation of the pressure.
    """
    curves, at_end = trace(path, hand.roundness)
    step = np.diff(curves, axis=1)
    angle = np.arctan2(-step[..., 1], step[..., 0])
    nib = np.abs(np.sin(angle - hand.nib_angle))
    down = np.maximum(0, -np.sin(angle))
    steady = 1 + rng.normal(0, 0.06, (len(curves), 1)) - 0.15 * at_end[:, None]
    width = (
        hand.pen * (1 - hand.contrast * (0.75 - nib)) * (1 + hand.pressure * (down - 0.35)) * steady
    )
    level = np.clip(np.rint(width * OVERSAMPLING), 2, 10 * OVERSAMPLING).astype(int)
    pieces = np.stack([curves[:, :-1], curves[:, 1:]], axis=2).reshape(-1, 2, 2)
    fixed = np.rint((pieces + 0.5) * OVERSAMPLING * (1 << SHIFT)).astype(np.int32)
    h, w = shape
    ink = np.zeros((h * OVERSAMPLING, w * OVERSAMPLING), np.uint8)
    for thickness in np.unique(level):
        run = fixed[level.ravel() == thickness]
        cv2.polylines(ink, list(run), False, 255, int(thickness), cv2.LINE_8, SHIFT)
    return cv2.resize(ink, (w, h), interpolation=cv2.INTER_AREA)


def draw_page(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws ink on random paper with random light and noise: uint8 [h, w, 3], RGB.

    Args:
      ink: uint8 [h, w], from draw_ink.
      rng: of the page.
    """
    h, w = ink.shape
    grey = rng.uniform(185, 245)
    paper = np.clip(grey * (1 + rng.uniform(0, 0.14) * np.array([0.35, 0.0, -1.0])), 0, 252)
    dark = rng.uniform(15, 80)
    tint = rng.uniform(0, 1) * np.array([[0.5, 0, -0.5], [-0.5, -0.2, 0.8]][rng.integers(2)])
    colour = dark * (1 + tint)
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)[None, :]
    gx, gy, gxy, gr = rng.normal(0, [0.04, 0.04, 0.02, 0.02])
    light = np.clip(1 + gx * x + gy * y + gxy * x * y - abs(gr) * (x * x + y * y), 0.6, 1.06)
    light *= 1 + rng.uniform(0.0, 0.02) * _cloud(h, w, 60, rng)
    grain = rng.integers(-1, 2, (h, w), np.int8) * rng.uniform(0.3, 2.5)
    # Whole steps, the same in all three channels: this halves the size of the PNG.
    light = np.rint(light * 230 + grain) / 230
    # The thickness of ink varies: some paper shows through, more on some pages than on others.
    cover = rng.uniform(0.75, 1.0) * (1 + 0.15 * _cloud(h, w, 9, rng))
    if rng.random() < 0.6:
        ink = cv2.GaussianBlur(ink, (3, 3), 0)
    alpha = np.minimum(ink * (cover / 255), 1)
    page = np.empty((h, w, 3), np.uint8)
    for channel in range(3):
        shade = (paper[channel] + (colour[channel] - paper[channel]) * alpha) * light
        page[..., channel] = np.minimum(np.rint(shade), 255)
    return page


def _cloud(h: int, w: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [-1, 1], float64 [h, w], that changes over about `cell` pixels."""
    # cv2.resize is not used: it rounds differently on different processors.
    noise = rng.uniform(-1, 1, (h // cell + 2, w // cell + 2))
    for axis, size in ((0, h), (1, w)):
        at, between = np.divmod(np.arange(size) / cell, 1)
        between = np.expand_dims(between * between * (3 - 2 * between), 1 - axis)
        at = at.astype(int)
        noise = noise.take(at, axis) * (1 - between) + noise.take(at + 1, axis) * between
    return noise
