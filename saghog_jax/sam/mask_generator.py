"""Automatic masks of a page from a grid of points, for every engine of SAM.

Kirillov et al., Segment Anything, 2023, appendix B. Differences from the published generator: masks
are measured in the frame of the model, the page shrunk to 1,024 pixels, so that only selected masks
are enlarged to the page; empty masks are always dropped; the image is not cropped. Shapes are
fixed, so that functions are compiled once.

Axis letters: q points, m masks of a point, c candidates (all masks of all points), k masks that are
kept, s side of the model's images in pixels, l side of the model's logits, h w of the frame.
"""

import functools
from typing import Any, NamedTuple, Protocol

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

# Logits above THRESHOLD are inside a mask; stability compares thresholds at this offset above and
# below it.
THRESHOLD = 0.0
STABILITY_OFFSET = 1.0


class Segmenter(Protocol):
    """A SAM with any engine.

    Attributes:
      image_size: side s of its images in pixels.
    """

    image_size: int

    def encode(self, frame: np.ndarray) -> Any:
        """Embeds a frame, uint8 [h, w, 3], whose longer side is `image_size`."""

    def decode(self, embedding: Any, points: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Masks of points, float32 [q, 2] (x, y) in pixels of the frame.

        Returns:
          logits [q, m, l, l] over the s x s square whose upper left part is the frame, and
          predicted IoU [q, m]; numpy or jax arrays.
        """


class Candidates(NamedTuple):
    """Measurements of each candidate, in pixels of the frame.

    Attributes:
      logits: float32 [c, l, l].
      iou: float32 [c], predicted IoU.
      stability: float32 [c], IoU of the masks at a higher and at a lower threshold; 0 if both are
        empty.
      boxes: float32 [c, 4], x0, y0, x1, y1 of the outermost pixels.
      area: int32 [c].
    """

    logits: jax.Array
    iou: jax.Array
    stability: jax.Array
    boxes: jax.Array
    area: jax.Array


class Masks(NamedTuple):
    """The kept masks, the best first.

    Attributes:
      masks: bool [k, h, w] in the frame.
      logits: float32 [k, l, l], see `to_page`.
      iou: float32 [k], predicted IoU.
      stability: float32 [k], see `Candidates`.
      total: number of masks without the limit `max_masks`.
    """

    masks: np.ndarray
    logits: np.ndarray
    iou: np.ndarray
    stability: np.ndarray
    total: int


class MaskGenerator:
    """Finds masks on pages.

    Args:
      segmenter: see `Segmenter`.
      points_per_side: side of the grid of points.
      points_per_batch: points decoded at once; affects memory, not the masks.
      min_iou: smallest predicted IoU of a mask (exclusive).
      min_stability: smallest stability of a mask.
      max_overlap: of two candidates whose boxes overlap by a larger IoU, the better one is kept.
      max_masks: largest number of masks.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        points_per_side: int,
        points_per_batch: int,
        min_iou: float,
        min_stability: float,
        max_overlap: float,
        max_masks: int,
    ) -> None:
        self._segmenter = segmenter
        self._batch = min(points_per_batch, points_per_side**2)
        self._grid = point_grid(points_per_side)
        self._limits = (min_iou, min_stability, max_overlap)
        self._max_masks = max_masks

    def __call__(self, image: np.ndarray) -> Masks:
        """The masks of an image, uint8 [h, w, 3]."""
        frame = shrink(image, self._segmenter.image_size)
        return self.masks(self._segmenter.encode(frame), frame.shape[:2])

    def masks(self, embedding: Any, frame: tuple[int, int]) -> Masks:
        """The masks of a frame of height and width `frame` from its embedding by `encode`."""
        side = self._segmenter.image_size
        h, w = frame
        points = (self._grid * [w, h]).astype(np.float32)
        # The last point is repeated to fill the last batch; masks of repeated points are ignored.
        padding = -len(points) % self._batch
        padded = np.concatenate([points, np.tile(points[-1:], (padding, 1))])
        batches = [
            measure(*self._segmenter.decode(embedding, batch), np.int32(frame), side)
            for batch in np.split(padded, len(padded) // self._batch)
        ]
        candidates = Candidates(*(jnp.concatenate(parts) for parts in zip(*batches, strict=True)))
        per_point = len(candidates.iou) // len(padded)
        valid = np.arange(len(candidates.iou)) < per_point * len(points)
        rows, total = select(candidates, valid, *map(np.float32, self._limits), self._max_masks)
        # The number of rows is the same for every page, so this is compiled once.
        logits, iou, stability = jax.device_get([array[rows] for array in candidates[:3]])
        kept = np.asarray(rows) >= 0
        masks = [_enlarge(one, (side, side))[:h, :w] > THRESHOLD for one in logits[kept]]
        masks = np.array(masks, bool).reshape(-1, h, w)
        return Masks(masks, logits[kept], iou[kept], stability[kept], int(total))


def point_grid(side: int) -> np.ndarray:
    """Centres of side x side cells of the unit square, float64 [side^2, 2] (x, y), row by row."""
    steps = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes uint8 [h, w, 3] to the longer side `side`, as the published predictor does."""
    factor = side / max(image.shape[:2])
    h, w = (max(1, int(length * factor + 0.5)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))


def to_page(logits: np.ndarray, frame: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Enlarges a mask to the size of the page: logits [l, l] -> bool [h, w].

    As in the published code the logits are enlarged to the square of the model, cropped to the
    frame, then resized to the page, each time bilinearly.

    Args:
      logits: float32, over the square.
      frame: h, w of the frame; the longer one is the side of the square.
      shape: h, w of the page.
    """
    square = _enlarge(logits, (max(frame), max(frame)))
    part = np.ascontiguousarray(square[: frame[0], : frame[1]])
    return _enlarge(part, shape) > THRESHOLD


def _enlarge(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(logits, shape[::-1], interpolation=cv2.INTER_LINEAR)


@functools.partial(jax.jit, static_argnames="side")
def measure(logits: jax.Array, iou: jax.Array, frame: jax.Array, side: int) -> Candidates:
    """Measures the masks of points in the frame.

    Args:
      logits: float32 [q, m, l, l].
      iou: float32 [q, m].
      frame: int32 [2], h and w of the frame.
      side: s; a multiple of l.

    Returns:
      c = q * m candidates; the masks of a point follow each other.
    """
    logits = logits.reshape(-1, *logits.shape[2:])
    square = upsample(logits, side // logits.shape[-1])
    inside = (jnp.arange(side)[:, None] < frame[0]) & (jnp.arange(side)[None, :] < frame[1])

    def above(threshold: float) -> jax.Array:
        return (square > threshold) & inside

    def count(mask: jax.Array) -> jax.Array:
        return mask.sum((1, 2), dtype=jnp.int32)

    mask = above(THRESHOLD)
    inner = count(above(THRESHOLD + STABILITY_OFFSET)).astype(jnp.float32)
    outer = count(above(THRESHOLD - STABILITY_OFFSET)).astype(jnp.float32)
    stability = jnp.where(outer > 0, inner / jnp.maximum(outer, 1.0), 0.0)
    (x0, x1), (y0, y1) = _ends(mask.any(1)), _ends(mask.any(2))
    boxes = jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.float32)
    return Candidates(logits, iou.reshape(-1), stability, boxes, count(mask))


def upsample(logits: jax.Array, factor: int) -> jax.Array:
    """Bilinear enlargement by an integer factor f, the border repeated: [c, l, l] -> [c, f l, f l].

    A pixel becomes `factor` pixels, each a mixture of the pixel and one neighbour with fixed
    weights: sums of shifted images, cheaper than the general matrix product.
    """
    for axis in (1, 2):
        length = logits.shape[axis]
        pad = [(1, 1) if axis == padded else (0, 0) for padded in range(3)]
        padded = jnp.pad(logits, pad, mode="edge")
        before, centre, after = (
            jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(3)
        )
        # Distance in old pixels from the centre of an old pixel to the centres of its new pixels.
        offsets = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
        phases = [
            centre * (1 - abs(offset)) + (before if offset < 0 else after) * abs(offset)
            for offset in offsets
        ]
        shape = list(logits.shape)
        shape[axis] *= factor
        logits = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return logits


def _ends(occupied: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last True of each row: bool [c, n] -> int32 [c] twice; 0, 0 for an empty row."""
    n = occupied.shape[1]
    first = jnp.argmax(occupied, axis=1)
    last = jnp.where(occupied.any(1), n - 1 - jnp.argmax(occupied[:, ::-1], axis=1), 0)
    return first, last


@functools.partial(jax.jit, static_argnames="max_masks")
def select(
    candidates: Candidates,
    valid: jax.Array,
    min_iou: jax.Array,
    min_stability: jax.Array,
    max_overlap: jax.Array,
    max_masks: int,
) -> tuple[jax.Array, jax.Array]:
    """Drops bad candidates and candidates that overlap a better one.

    Args:
      candidates: c candidates.
      valid: bool [c]; False candidates are ignored.
      min_iou, min_stability, max_overlap, max_masks: as for `MaskGenerator`.

    Returns:
      int32 [max_masks], rows of the kept candidates, the best first and equal ones in order, padded
      with -1; and the number of kept candidates without the limit `max_masks`.
    """
    good = valid & (candidates.iou > min_iou) & (candidates.stability >= min_stability)
    good &= candidates.area > 0
    order = jnp.argsort(jnp.where(good, -candidates.iou, jnp.inf), stable=True)
    overlaps = overlap(candidates.boxes[order]) > max_overlap
    ranks = jnp.arange(len(order))

    def step(i: jax.Array, kept: jax.Array) -> jax.Array:
        return kept.at[i].set(kept[i] & ~(kept & overlaps[i] & (ranks < i)).any())

    kept = jax.lax.fori_loop(0, len(order), step, good[order])
    ranks = jnp.nonzero(kept, size=max_masks, fill_value=-1)[0]
    rows = jnp.where(ranks >= 0, order[ranks], -1)
    return rows.astype(jnp.int32), kept.sum(dtype=jnp.int32)


def overlap(boxes: jax.Array) -> jax.Array:
    """IoU of every pair of boxes: [c, 4] -> [c, c]; 0 if neither box has an area."""
    low = jnp.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = jnp.maximum(high - low, 0.0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    union = areas[:, None] + areas[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1.0), 0.0)
