"""Which of SAM's masks are handwriting: the rules of the published code, and those of the paper.

SAM is shown the edges of the page. The code does not do what the paper says; both are here, each
with its own section of thresholds (configs/regions.py: sam_config). Where neither says more, the
reading taken is stated. The code also cuts every black row and column out of the masked page, those
between two lines too: here the page is never written to, and patches are cut where the mask is.

Axis letters: k masks, h w of the frame that masks are in.
"""

from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.binarize import to_grey
from saghog_jax.input_pipeline.errors import check_choice

RULES = ("published_code", "paper")
INPUTS = ("edges", "page")
INVERSIONS = ("area", "none")
_BLUR = (5, 5)
_CANNY = (150, 200)
# A mask that covers more than this of all four sides of the page is taken for the background.
_COVERED = 0.8


class Choice(NamedTuple):
    """The masks that are taken, by number, and for each mask what became of it and why."""

    taken: tuple[int, ...]
    verdicts: tuple[str, ...]


def check(section: ConfigDict) -> None:
    """Raises UserError for names that are not known."""
    for field, known in (("input", INPUTS), ("rules", RULES)):
        check_choice(f"{field} of SAM", section[field], known)
    inversion = section.published_code.inversion
    check_choice("published_code.inversion of SAM", inversion, INVERSIONS)


def edges(image: np.ndarray) -> np.ndarray:
    """Edges of a page as published (blur of 5 x 5, Canny of 150 and 200): uint8 [h, w], 0 or 255.

    Args:
      image: uint8 [h, w, 3], RGB.
    """
    return cv2.Canny(cv2.GaussianBlur(to_grey(image, "opencv"), _BLUR, 0), *_CANNY)


def choose(masks: np.ndarray, edge_map: np.ndarray, section: ConfigDict) -> Choice:
    """Takes the masks that are handwriting.

    Args:
      masks: bool [k, h, w].
      edge_map: uint8, `edges` of the page, of any size.
      section: of the backend; `rules` says which.
    """
    if section.rules == "paper":
        return by_paper(edge_shares(masks, edge_map), section.paper)
    return by_published_code(masks, section.published_code)


def by_published_code(masks: np.ndarray, rules: ConfigDict) -> Choice:
    """The rules of the published code, its mistakes included.

    Masks are looked at from the largest to the smallest. One whose area is more than `alone_share`
    of the page is taken alone and ends the search; those of more than `min_share` stay. Of these
    the first two are merged if the ratio of their areas lies between `merge_low` and `merge_high`;
    otherwise the first is taken and the second dropped. With `inversion="area"` a mask that covers
    all four sides of the page counts with the area of its inverse, while the mask itself stays as
    it is, and its rows are compared with the height of the page and its columns with the width.

    Readings: masks are ordered by their own areas, before any is inverted; the ratio is that of
    the first to the second in this order.
    """
    _, h, w = masks.shape
    own = masks.sum((1, 2))
    areas = [
        h * w - area if rules.inversion == "area" and _covers_sides(mask) else area
        for mask, area in zip(masks, own, strict=True)
    ]
    shares = np.asarray(areas, np.float64) / (h * w)
    verdicts = ["not looked at"] * len(masks)
    stay: list[int] = []
    for i in np.argsort(-own, kind="stable").tolist():
        if shares[i] > rules.alone_share:
            for other in stay:
                verdicts[other] = "dropped: a larger one is taken alone"
            verdicts[i] = "taken alone"
            return Choice((i,), tuple(verdicts))
        if shares[i] > rules.min_share:
            stay.append(i)
            verdicts[i] = "dropped: only the two largest are looked at"
        else:
            verdicts[i] = f"dropped: area {shares[i]:.3f} of the page"
    taken = stay[:1]
    if len(stay) > 1:
        ratio = shares[stay[0]] / shares[stay[1]]
        if rules.merge_low < ratio < rules.merge_high:
            taken = stay[:2]
        else:
            verdicts[stay[1]] = f"dropped: the first is {ratio:.2f} times as large"
    for i in taken:
        verdicts[i] = "taken"
    return Choice(tuple(taken), tuple(verdicts))


def by_paper(shares: np.ndarray, rules: ConfigDict) -> Choice:
    """The rules of the paper: masks with few edges are dropped, at most `most_masks` are merged.

    The paper's third rule, on confidence, is `min_iou` of the mask generator. Readings: the share
    is that of the page's edge pixels that lie in a mask; the masks with most of them are merged.

    Args:
      shares: float [k], of `edge_shares`.
    """
    verdicts = [f"dropped: {share:.3f} of the edges" for share in shares]
    order = np.argsort(-shares, kind="stable")
    stay = [i for i in order.tolist() if shares[i] >= rules.min_edges]
    for place, i in enumerate(stay):
        taken = place < rules.most_masks
        verdicts[i] = "taken" if taken else "dropped: others hold more edges"
    return Choice(tuple(stay[: rules.most_masks]), tuple(verdicts))


def edge_shares(masks: np.ndarray, edge_map: np.ndarray) -> np.ndarray:
    """Share of the page's edge pixels that lies in each mask: bool [k, h, w] -> float64 [k].

    Args:
      edge_map: uint8 of any size, not 0 on edges; without an edge all shares are 0.
    """
    size = masks.shape[:0:-1]
    density = cv2.resize((edge_map > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    total = density.sum(dtype=np.float64)
    inside = np.array([density[mask].sum(dtype=np.float64) for mask in masks])
    return inside / total if total else np.zeros(len(masks))


def without_border(mask: np.ndarray, border: int) -> np.ndarray:
    """The mask without its outermost `border` pixels; nothing is left of a small one."""
    inner = np.zeros_like(mask)
    part = slice(border, -border or None)
    inner[part, part] = mask[part, part]
    return inner


def _covers_sides(mask: np.ndarray) -> bool:
    """Whether a mask covers all sides, rows wrongly compared with the height, columns the width."""
    h, w = mask.shape
    rows, columns = mask[[0, -1]].sum(1), mask[:, [0, -1]].sum(0)
    return bool((rows > _COVERED * h).all() and (columns > _COVERED * w).all())
