"""The mask generator on planted logits, against segment-anything and against plain loops."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

from saghog_jax.sam.mask_generator import (
    Candidates,
    MaskGenerator,
    measure,
    overlap,
    point_grid,
    select,
    shrink,
    to_page,
    upsample,
)

GOLDEN = np.load(TESTS / "golden" / "sam_tiny.npz")
EVERYTHING = -100.0


class Planted:
    """Returns planted masks in the order of the points."""

    image_size = 64

    def __init__(self, logits, iou):
        self.logits, self.iou, self.frames, self.points = logits, iou, [], []

    def encode(self, frame):
        self.frames.append(frame)
        self.points = []
        return frame

    def decode(self, embedding, points):
        assert embedding is self.frames[-1]
        rows = np.arange(len(self.points), len(self.points) + len(points)) % len(self.iou)
        self.points.extend(points.tolist())
        return self.logits[rows], self.iou[rows]


def generate(shape, points_per_batch=3, min_iou=EVERYTHING, min_stability=0.0, max_overlap=0.3,
             max_masks=48):  # fmt: skip
    planted = Planted(GOLDEN["planted_logits"].astype(np.float32), GOLDEN["planted_iou"])
    generator = MaskGenerator(
        planted, 4, points_per_batch, min_iou, min_stability, max_overlap, max_masks
    )
    return generator(np.zeros((*shape, 3), np.uint8)), planted


def published(key):
    """The masks of segment-anything without empty ones, which it keeps if thresholds are open."""
    width = {"same": 48, "large": 160}[key.split("_")[0]]
    masks = np.unpackbits(GOLDEN[f"{key}_masks"], axis=-1, count=width).astype(bool)
    full = masks.any((1, 2))
    fields = ("predicted_iou", "stability_score")
    return masks[full], *(GOLDEN[f"{key}_{field}"][full] for field in fields)


@pytest.mark.parametrize("rule", ["open", "strict"])
def test_page_of_the_models_size_is_as_published(rule):
    limits = {} if rule == "open" else {"min_iou": 0.7, "min_stability": 0.5}
    ours, planted = generate((64, 48), **limits)
    masks, iou, stability = published(f"same_{rule}")
    assert len(masks) == {"open": 24, "strict": 7}[rule]
    np.testing.assert_array_equal(ours.masks, masks)
    np.testing.assert_array_equal(ours.iou, iou)
    np.testing.assert_allclose(ours.stability, stability, rtol=1e-6)
    assert ours.total == len(masks)
    assert planted.points[:2] == [[6.0, 8.0], [18.0, 8.0]]


@pytest.mark.parametrize("rule", ["open", "strict"])
def test_larger_page_is_as_published(rule):
    """Stability is judged in the frame of 36 x 64 pixels, where it is coarser than on the page."""
    limits = {} if rule == "open" else {"min_iou": 0.7, "min_stability": 0.5}
    ours, planted = generate((90, 160), **limits)
    masks, iou, stability = published(f"large_{rule}")
    assert planted.frames[0].shape == (36, 64, 3)
    np.testing.assert_array_equal(ours.iou, iou)
    pages = [to_page(logits, (36, 64), (90, 160)) for logits in ours.logits]
    np.testing.assert_array_equal(pages, masks)
    large = masks.mean((1, 2)) > 0.03
    assert large.sum() == {"open": 14, "strict": 5}[rule]
    # The smallest of these has 69 pixels in the frame: two of them, and three of the worse masks
    # that open limits let in.
    tolerance = {"open": 0.045, "strict": 0.03}[rule]
    np.testing.assert_allclose(ours.stability[large], stability[large], atol=tolerance)


@pytest.mark.parametrize("points_per_batch", [1, 5, 16, 100])
def test_batches_decide_nothing(points_per_batch):
    whole, _ = generate((64, 48))
    batched, planted = generate((64, 48), points_per_batch=points_per_batch)
    np.testing.assert_array_equal(batched.masks, whole.masks)
    assert batched.total == whole.total
    expected = -(-16 // min(points_per_batch, 16)) * min(points_per_batch, 16)
    assert len(planted.points) == expected


def test_the_best_masks_are_kept_and_the_others_counted():
    whole, _ = generate((64, 48))
    best, _ = generate((64, 48), max_masks=4)
    np.testing.assert_array_equal(best.masks, whole.masks[:4])
    assert best.total == whole.total == 24


def test_no_mask_at_all():
    nothing, _ = generate((64, 48), min_iou=2.0)
    assert nothing.masks.shape == (0, 64, 48)
    assert nothing.total == 0


def loop(boxes, iou, stability, area, limits):
    """The published greedy suppression, candidate after candidate."""
    min_iou, min_stability, max_overlap = limits
    kept = []
    for i in sorted(range(len(iou)), key=lambda i: (-iou[i], i)):
        if not (iou[i] > min_iou and stability[i] >= min_stability and area[i] > 0):
            continue
        x0, y0, x1, y1 = boxes[i]
        for j in kept:
            a0, b0, a1, b1 = boxes[j]
            shared = max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0)
            union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - shared
            if union and shared / union > max_overlap:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_selection_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    n, most = 80, 25
    corners = rng.integers(0, 20, (n, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    # Coarse scores, so that there are ties.
    iou = (rng.integers(0, 8, n) / 8).astype(np.float32)
    stability = (rng.integers(0, 5, n) / 4).astype(np.float32)
    area = rng.integers(0, 4, n).astype(np.int32)
    limits = (np.float32(0.125), np.float32(0.25), np.float32(rng.choice([0.01, 0.3, 0.7])))
    rows, total = select(
        Candidates(jnp.zeros((n, 1, 1)), *map(jnp.asarray, (iou, stability, boxes, area))),
        np.ones(n, bool), *limits, most,
    )  # fmt: skip
    kept = loop(boxes.tolist(), iou, stability, area, limits)
    assert total == len(kept) > 3
    expected = (kept + [-1] * most)[:most]
    np.testing.assert_array_equal(rows, expected)


def test_limits_at_their_values():
    """IoU must be above its limit, stability may equal it, overlap may equal it."""
    boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]], jnp.float32)
    candidates = Candidates(
        jnp.zeros((3, 1, 1)), jnp.array([0.9, 0.8, 0.7]), jnp.full(3, 0.5), boxes,
        jnp.ones(3, jnp.int32),
    )  # fmt: skip

    def kept(*limits):
        rows, _ = select(candidates, np.ones(3, bool), *map(np.float32, limits), 3)
        return [row for row in rows.tolist() if row >= 0]

    assert kept(0.1, 0.5, 0.5) == [0, 1, 2]
    assert kept(0.1, 0.5, 0.49) == [0, 2]
    assert kept(0.7, 0.5, 0.5) == [0, 1]
    assert kept(0.1, 0.51, 0.5) == []


def test_ignored_candidates_are_not_kept():
    candidates = Candidates(
        jnp.zeros((2, 1, 1)), jnp.array([0.9, 0.8]), jnp.ones(2), jnp.zeros((2, 4)),
        jnp.ones(2, jnp.int32),
    )  # fmt: skip
    limits = (np.float32(v) for v in (0, 0, 1))
    rows, total = select(candidates, np.array([False, True]), *limits, 2)
    assert rows.tolist() == [1, -1]
    assert total == 1


def test_measures_of_a_frame():
    """A square of 4 in the corner, a mask outside of the frame, one that only just is none."""
    logits = np.full((1, 3, 8, 8), -9, np.float32)
    logits[0, 0, :2, 1:3] = 9
    logits[0, 1, 6:] = 9
    logits[0, 2] = -0.5
    candidates = measure(logits, np.float32([[0.1, 0.2, 0.3]]), np.int32([10, 16]), 16)
    np.testing.assert_array_equal(candidates.area, [4 * 4, 0, 0])
    np.testing.assert_array_equal(candidates.boxes, [[2, 0, 5, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(candidates.iou, np.float32([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(candidates.stability[1:], [0, 0])


def test_stability_counts_pixels_above_and_below():
    logits = np.float32([[[[2.0, 0.5], [-0.5, -2.0]]]])
    candidates = measure(logits, np.float32([[0.5]]), np.int32([2, 2]), 2)
    assert candidates.stability.tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("factor", [1, 2, 4, 5])
def test_enlarging_is_bilinear(factor):
    logits = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    size = (6 * factor, 6 * factor)
    expected = [cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in logits]
    np.testing.assert_allclose(upsample(jnp.asarray(logits), factor), expected, atol=1e-5)


def test_boxes_without_area_overlap_nothing():
    boxes = jnp.array([[1, 1, 1, 5], [1, 1, 1, 5], [0, 0, 4, 4], [2, 0, 6, 4]], jnp.float32)
    np.testing.assert_allclose(
        overlap(boxes), [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1 / 3], [0, 0, 1 / 3, 1]], rtol=1e-6
    )


def test_points_and_frames():
    np.testing.assert_allclose(
        point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75] * 2]
    )
    assert shrink(np.zeros((3000, 2001, 3), np.uint8), 1024).shape == (1024, 683, 3)
    assert shrink(np.zeros((1, 5000, 3), np.uint8), 1024).shape == (1, 1024, 3)
