"""Selects the masks of SAM that are handwriting: by the published code's rules, or the paper's.

SAM gets the edges of the page as its input. The published code differs from the paper; both are
implemented here, each with its own section of thresholds (configs/regions.py: sam_config). Where
both are ambiguous, the docstrings state our interpretation. The published code also removes every
black row and column from the masked page, even between two lines. Here the page is never changed:
patches are cut inside the mask.

Axis letters: k masks, h w height and width of the masks.
"""

from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.errors import check_choice

ENGINES = ("flax", "onnx")
RULES = ("published_code", "paper")
INPUTS = ("edges", "page")
INVERSIONS = ("area", "none")
_BLUR = (5, 5)
_CANNY = (150, 200)
# A mask that covers more than this fraction of all four sides of the page is the background.
_COVERED = 0.8


class Choice(NamedTuple):
    """The selected masks, by number, and the decision on each mask with its reason."""

    selected: tuple[int, ...]
    verdicts: tuple[str, ...]


def check(section: ConfigDict) -> None:
    """Raises UserError for unknown names."""
    for field, known in (("input", INPUTS), ("rules", RULES)):
        check_choice(f"{field} of SAM", section[field], known)
    inversion = section.published_code.inversion
    check_choice("published_code.inversion of SAM", inversion, INVERSIONS)


def edges(image: np.ndarray) -> np.ndarray:
    """Edges of a page as in the published code: uint8 [h, w], 0 or 255.

    A Gaussian blur of 5 x 5 pixels, then Canny with thresholds 150 and 200.

    Args:
      image: uint8 [h, w, 3], RGB.
    """
    return cv2.Canny(cv2.GaussianBlur(to_grey(image, "opencv"), _BLUR, 0), *_CANNY)


def choose(masks: np.ndarray, edge_map: np.ndarray, section: ConfigDict) -> Choice:
    """Selects the masks that are handwriting.

    Args:
      masks: bool [k, h, w].
      edge_map: uint8, `edges` of the page, of any size.
      section: of the backend; its field `rules` selects the rules.
    """
    if section.rules == "paper":
        return by_paper(edge_fractions(masks, edge_map), section.paper)
    return by_published_code(masks, section.published_code)


def by_published_code(masks: np.ndarray, rules: ConfigDict) -> Choice:
    """The rules of the published code, including its mistakes.

    Masks are examined from the largest to the smallest. A mask with an area of more than
    `alone_share` of the page is selected alone and ends the search. Masks with more than
    `min_share` are candidates. The first two candidates are merged if the ratio of their areas lies
    between `merge_low` and `merge_high`; otherwise the first is selected and the second dropped.
    With `inversion="area"` a mask that covers all four sides of the page counts with the area of
    its inverse, while the mask itself is not inverted; its rows are compared with the height of the
    page, and its columns with the width.

    Our interpretation: masks are ordered by their own areas, before any inversion; the ratio is
    that of the first to the second candidate in this order.
    """
    _, h, w = masks.shape
    own = masks.sum((1, 2))
    areas = [
        h * w - area if rules.inversion == "area" and _covers_sides(mask) else area
        for mask, area in zip(masks, own, strict=True)
    ]
    fractions = np.asarray(areas, np.float64) / (h * w)
    verdicts = ["not examined"] * len(masks)
    candidates: list[int] = []
    for i in np.argsort(-own, kind="stable").tolist():
        if fractions[i] > rules.alone_share:
            for other in candidates:
                verdicts[other] = "dropped: a larger mask is selected alone"
            verdicts[i] = "selected alone"
            return Choice((i,), tuple(verdicts))
        if fractions[i] > rules.min_share:
            candidates.append(i)
            verdicts[i] = "dropped: only the two largest masks are candidates"
        else:
            verdicts[i] = f"dropped: area {fractions[i]:.3f} of the page"
    selected = candidates[:1]
    if len(candidates) > 1:
        ratio = fractions[candidates[0]] / fractions[candidates[1]]
        if rules.merge_low < ratio < rules.merge_high:
            selected = candidates[:2]
        else:
            verdicts[candidates[1]] = f"dropped: the first mask is {ratio:.2f} times as large"
    for i in selected:
        verdicts[i] = "selected"
    return Choice(tuple(selected), tuple(verdicts))


def by_paper(fractions: np.ndarray, rules: ConfigDict) -> Choice:
    """The rules of the paper: masks with few edges are dropped, at most `most_masks` are merged.

    The paper's third rule, on confidence, is `min_iou` of the mask generator. Our interpretation:
    the first rule is about the fraction of the page's edge pixels that lie in a mask; the masks
    with the largest fractions are merged.

    Args:
      fractions: float [k], from `edge_fractions`.
    """
    verdicts = [f"dropped: {fraction:.3f} of the edges" for fraction in fractions]
    order = np.argsort(-fractions, kind="stable")
    candidates = [i for i in order.tolist() if fractions[i] >= rules.min_edges]
    for rank, i in enumerate(candidates):
        selected = rank < rules.most_masks
        verdicts[i] = "selected" if selected else "dropped: other masks hold more edges"
    return Choice(tuple(candidates[: rules.most_masks]), tuple(verdicts))


def edge_fractions(masks: np.ndarray, edge_map: np.ndarray) -> np.ndarray:
    """Fraction of the page's edge pixels in each mask: bool [k, h, w] -> float64 [k].

    Args:
      edge_map: uint8 of any size, not 0 on edges; without edges all fractions are 0.
    """
    size = masks.shape[:0:-1]
    density = cv2.resize((edge_map > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    total = density.sum(dtype=np.float64)
    inside = np.array([density[mask].sum(dtype=np.float64) for mask in masks])
    return inside / total if total else np.zeros(len(masks))


def without_border(mask: np.ndarray, border: int) -> np.ndarray:
    """The mask without its outermost `border` pixels; empty if the mask is too small."""
    inner = np.zeros_like(mask)
    part = slice(border, -border or None)
    inner[part, part] = mask[part, part]
    return inner


def _covers_sides(mask: np.ndarray) -> bool:
    """Whether a mask covers all four sides of the page.

    As in the published code, rows are wrongly compared with the height, and columns with the width.
    """
    h, w = mask.shape
    rows, columns = mask[[0, -1]].sum(1), mask[:, [0, -1]].sum(0)
    return bool((rows > _COVERED * h).all() and (columns > _COVERED * w).all())
