"""Synthetic scans with known handwriting, and with the clutter of real scans."""

import cv2
import numpy as np

from saghog_jax.input_pipeline.datasets import synthetic_hand, synthetic_page

CLUTTER = ("bed", "rulings", "frame", "stamp", "decoration", "specks")


def make_scan(seed: int, clutter=CLUTTER, shape=(1300, 1000)) -> tuple[np.ndarray, np.ndarray]:
    """A scan of a written page, uint8 [h, w, 3], and the mask of its ink, bool [h, w].

    clutter: of `bed` (the sheet lies on a dark ground), `rulings` (lines that are written on),
    `frame` (a printed border), `stamp`, `decoration` (a miniature) and `specks`.
    """
    rng = np.random.default_rng(seed)
    hand = synthetic_hand.on_page(synthetic_hand.draw_hand(rng), rng)
    h, w = shape
    top, left = 330, 190
    block = (h - top - 150, w - 2 * left)
    ink = np.zeros(shape, np.uint8)
    path = synthetic_page.lay_out(hand, block, 10, rng)
    ink[top : top + block[0], left : left + block[1]] = synthetic_page.draw_ink(
        path, hand, block, rng
    )
    page = synthetic_page.draw_page(ink, rng)
    dark = (70, 50, 60)
    if "rulings" in clutter:
        for y in range(top, h - 130, 48):
            cv2.line(page, (100, y), (w - 100, y + 3), (150, 165, 190), 2)
        cv2.line(page, (150, 80), (148, h - 80), (200, 130, 140), 2)
    if "frame" in clutter:
        cv2.rectangle(page, (85, 85), (w - 85, h - 75), dark, 3)
        cv2.rectangle(page, (95, 95), (w - 95, h - 85), dark, 1)
    if "stamp" in clutter:
        cv2.circle(page, (w - 220, 190), 62, (60, 60, 150), 4)
        cv2.circle(page, (w - 220, 190), 44, (60, 60, 150), 2)
        cv2.putText(page, "No 1", (w - 255, 200), cv2.FONT_HERSHEY_SIMPLEX, 1, (60, 60, 150), 3)
    if "decoration" in clutter:
        cv2.rectangle(page, (140, 120), (330, 290), (120, 60, 40), -1)
        for _ in range(25):
            centre = rng.integers((150, 130), (320, 280)).tolist()
            colour = rng.integers(30, 220, 3).tolist()
            cv2.circle(page, centre, int(rng.integers(6, 24)), colour, -1)
    if "specks" in clutter:
        at = rng.integers((0, 0), (h, w), (150, 2))
        page[at[:, 0], at[:, 1]] = 60
    if "bed" in clutter:
        page[:45] = page[-40:] = 35
        page[:, :50] = page[:, -38:] = 35
        noise = rng.integers(-6, 7, shape)[..., None]
        page = np.clip(page + noise, 0, 255).astype(np.uint8)
    return page, ink > 127


def recall_and_junk(image: np.ndarray, ink: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Fraction of the ink in the mask, and fraction of the edges outside of the text in the mask.

    The text is the area within a letter's height of the ink, including the space between lines.
    """
    near = cv2.dilate(ink.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0
    edges = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 100, 200) > 0
    outside = edges & ~near
    return (ink & mask).sum() / ink.sum(), (outside & mask).sum() / max(outside.sum(), 1)
