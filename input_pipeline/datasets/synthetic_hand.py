"""A hand of the built-in corpus: the constant traits of a writer, and the writing of lines.

Lengths are in units of the writer's x-height, but `write_line` returns lengths in pixels.
Angles are in radians.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.datasets.synthetic_glyphs import ALLOGRAPHS, Glyph

# Deviation of a writer's letter shapes from the skeleton: of whole letters, and of single points.
LETTER_DEFORMATION = 0.05
POINT_DEFORMATION = 0.025
# Deviation of one instance of a letter from the writer's shape of this letter.
INSTANCE_DEFORMATION = 0.05
INSTANCE_JITTER = 0.035


@dataclass(frozen=True)
class Hand:
    """A writer's traits and letters.

    Attributes:
      x_height: in pixels.
      aspect: width of a letter relative to its height.
      slant: shift to the right per unit of height.
      roundness: length of a curve's tangents relative to its chord; about 1.2 is a circle.
      pen: width of a stroke in pixels.
      nib_angle, contrast: angle and effect of a broad nib; with contrast 0 a ball pen.
      pressure: additional width of downward strokes relative to upward strokes.
      ascender, descender: scale of the parts above the x-height and below the baseline.
      letter_space, word_space: added between letters and between words.
      tail: length of a letter's last stroke if no join follows.
      slope: of the baseline.
      wobble: of the baseline, standard deviation.
      joins: letters that the writer joins to the next letter.
      letters: the writer's shape of every character.
    """

    x_height: float
    aspect: float
    slant: float
    roundness: float
    pen: float
    nib_angle: float
    contrast: float
    pressure: float
    ascender: float
    descender: float
    letter_space: float
    word_space: float
    tail: float
    slope: float
    wobble: float
    joins: frozenset[str]
    letters: dict[str, Glyph]


class Path(NamedTuple):
    """The path of the pen; k points in pixels, y down.

    Attributes:
      points: float64 [k, 2].
      smooth: float64 [k], 1 if the pen passes the point smoothly, 0 at a sharp turn.
      start: bool [k], true at the first point of each stroke.
    """

    points: np.ndarray
    smooth: np.ndarray
    start: np.ndarray


def deform(glyph: Glyph, whole: float, single: float, rng: np.random.Generator) -> Glyph:
    """Scales and shears a glyph a little (by `whole`) and moves its points (by `single`)."""
    # Letters vary more in width and slant than in height, and least in rotation.
    matrix = np.eye(2) + rng.normal(0, whole, (2, 2)) * [[1.0, 1.0], [0.5, 0.7]]
    moved = (glyph.points[:, None, :] * matrix).sum(-1)
    return glyph._replace(points=moved + rng.normal(0, single, glyph.points.shape))


def draw_hand(rng: np.random.Generator) -> Hand:
    """Draws a new writer."""
    join_habit = rng.beta(0.9, 0.7)
    letters, joins = {}, set()
    for letter, allographs in ALLOGRAPHS.items():
        glyph = allographs[rng.integers(len(allographs))]
        letters[letter] = deform(glyph, LETTER_DEFORMATION, POINT_DEFORMATION, rng)
        if rng.random() < join_habit and letter.islower():
            joins.add(letter)
    return Hand(
        x_height=rng.uniform(16.0, 20.0),
        aspect=rng.uniform(0.9, 1.12),
        slant=rng.normal(0.15, 0.1),
        roundness=rng.uniform(0.9, 1.25),
        pen=rng.uniform(1.8, 2.2),
        nib_angle=rng.uniform(0.4, 1.1),
        contrast=rng.uniform(0.0, 0.4),
        pressure=rng.uniform(0.0, 0.4),
        ascender=rng.uniform(0.8, 1.15),
        descender=rng.uniform(0.8, 1.15),
        letter_space=rng.uniform(0.08, 0.28),
        word_space=rng.uniform(0.6, 1.0),
        tail=rng.uniform(0.4, 1.3),
        slope=rng.normal(0.0, 0.004),
        wobble=rng.uniform(0.02, 0.09),
        joins=frozenset(joins),
        letters=letters,
    )


def on_page(hand: Hand, rng: np.random.Generator) -> Hand:
    """The variation of a hand on one page: another pen, slightly different size, slant, spacing."""
    return replace(
        hand,
        x_height=hand.x_height * rng.uniform(0.93, 1.07),
        aspect=hand.aspect * rng.uniform(0.95, 1.05),
        slant=hand.slant + rng.normal(0, 0.05),
        pen=hand.pen * rng.uniform(0.7, 1.4),
        contrast=hand.contrast * rng.uniform(0.6, 1.4),
        letter_space=hand.letter_space + rng.normal(0, 0.03),
        slope=hand.slope + rng.normal(0, 0.006),
    )


def write_line(
    hand: Hand, words: Sequence[str], x: float, y: float, width: float, rng: np.random.Generator
) -> tuple[Path, int]:
    """Writes words from left to right until the line is full.

    Args:
      hand: the writer.
      words: at least one; the first word is written even if it is wider than the line.
      x, y: start of the baseline in pixels.
      width: of the line in pixels.
      rng: of this line.

    Returns:
      the path of the pen, and the number of words written.
    """
    bodies, marks = [], []
    limit = width / (hand.x_height * hand.aspect)
    at, written = 0.0, 0
    for word in words:
        if written and at + sum(_advance(hand, hand.letters[letter]) for letter in word) > limit:
            break
        lift = rng.normal(0, hand.wobble)
        joined = False
        for place, letter in enumerate(word):
            glyph = deform(hand.letters[letter], INSTANCE_DEFORMATION, INSTANCE_JITTER, rng)
            body = _body_length(glyph)
            right = glyph.points[:, 0].max()
            joins = (
                place + 1 < len(word)
                and letter in hand.joins
                # A letter whose body ends on its left side (a hooked y) cannot be joined.
                and glyph.points[body - 1, 0] > 0.55 * right
                and rng.random() < 0.95
            )
            points = glyph.points + np.array([at, lift + rng.normal(0, 0.5 * hand.wobble)])
            if not joins and glyph.smooth[body - 1]:
                points[body - 1] += (hand.tail - 1) * (points[body - 1] - points[body - 2])
            start = glyph.start.copy()
            start[0] = not joined
            if joined:
                bodies.append(_way_over(points, right))
            bodies.append(Path(points[:body], glyph.smooth[:body], start[:body]))
            marks.append(Path(points[body:], glyph.smooth[body:], start[body:]))
            at += _advance(hand, glyph)
            joined = joins
        at += hand.word_space * rng.uniform(0.85, 1.2)
        written += 1
    path = join_paths(bodies + marks)
    return path._replace(points=_to_pixels(hand, path.points, x, y, rng)), written


def join_paths(paths: Sequence[Path]) -> Path:
    """Concatenates paths."""
    return Path(*(np.concatenate(arrays) for arrays in zip(*paths)))


def _advance(hand: Hand, glyph: Glyph) -> float:
    return max(glyph.points[:, 0].max(), 0.3) + hand.letter_space


def _way_over(points: np.ndarray, right: float) -> Path:
    """The curve of a join over a letter that begins at its upper right (a, c, d, g, q)."""
    (x, y), (next_x, _) = points[:2]
    left = points[:, 0].min()
    over = [[left + 0.3 * right, 0.93 * y + 0.1]] if next_x < x and x - left > 0.45 * right else []
    return Path(np.reshape(over, (-1, 2)), np.ones(len(over)), np.zeros(len(over), bool))


def _body_length(glyph: Glyph) -> int:
    later = np.flatnonzero(glyph.start[1:])
    return int(later[0]) + 1 if len(later) else len(glyph.start)


def _to_pixels(
    hand: Hand, points: np.ndarray, x: float, y: float, rng: np.random.Generator
) -> np.ndarray:
    """Applies proportions, slant, size and baseline: from x-heights, y up, to pixels, y down."""
    u, v = points[:, 0], points[:, 1]
    v = np.where(v > 1, 1 + (v - 1) * hand.ascender, np.where(v < 0, v * hand.descender, v))
    length, phase = rng.uniform(12, 30), rng.uniform(0, 2 * np.pi)
    course = hand.wobble * np.sin(2 * np.pi * u / length + phase)
    slope = hand.slope + rng.normal(0, 0.003)
    right = x + hand.x_height * (hand.aspect * u + hand.slant * v)
    return np.stack([right, y - hand.x_height * (v + course) - slope * (right - x)], axis=1)
