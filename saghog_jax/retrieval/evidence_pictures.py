"""The evidence of a match as pictures: ink heat maps, and like patches side by side."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.errors import PageError
from input_pipeline.images import load_page
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.thumbnails import data_uri

# Cells along the longer side of a heat map.
_CELLS = 240
# Sides of a patch that its picture shows (report.css frames the middle one), and its pixels.
_AROUND = 3
_PICTURE = 96
# What speaks for and against a match, RGB: told apart by all common kinds of colour vision.
_FOR, _AGAINST = (230, 97, 1), (20, 110, 220)


class PageEvidence(NamedTuple):
    """Where the patches of a page are [n, 2] (x, y), what each contributes [n], and the page's mean
    similarity to the pages of the gallery."""

    place: np.ndarray
    contributions: np.ndarray
    mean: float


class Evidence(NamedTuple):
    """What makes a query and a page of the gallery similar (retrieval/attribution.py).

    pairs: int64 [m, 2], rows of like patches in `query` and `match`, with their cosines [m].
    side, scale: pixels of a patch, on pages resized by `scale`.
    """

    similarity: float
    query: PageEvidence
    match: PageEvidence
    pairs: np.ndarray
    cosines: np.ndarray
    side: int
    scale: float


def pictures(
    queries: Embeddings,
    gallery: Embeddings,
    found: Mapping[tuple[int, int], Evidence],
    max_pixels: int,
) -> dict[tuple[int, int], dict]:
    """For each match the data that the report's script shows.

    Returns:
      `similarity`, `means` of both pages, `heat` (data URIs for both), `side` of a patch in pixels
      of the page, and `pairs`: [cosine, [x, y, data URI] in the query, the same in the match]. A
      match whose images cannot be read any more is left out.
    """

    # The query of several matches stays, one match after the other.
    @lru_cache(maxsize=2)
    def image(of_query: bool, row: int) -> np.ndarray | None:
        pages = queries if of_query else gallery
        try:
            return load_page(pages.image(row), pages.box(row), max_pixels)
        except PageError:
            return None

    made: dict[tuple[int, int], dict] = {}
    for (row, other), evidence in found.items():
        both = image(True, row), image(False, other)
        if any(page is None for page in both):
            continue
        sides = evidence.query, evidence.match
        maps = [
            _density(e, page.shape[:2], evidence.side, evidence.scale)
            for e, page in zip(sides, both, strict=True)
        ]
        # The strongest ink of both pages takes the full colour; a few outliers do not dim the rest.
        strongest = max(float(np.quantile(np.abs(at), 0.9)) for _, at in maps)
        pairs = []
        for pair, cosine in zip(evidence.pairs, evidence.cosines, strict=True):
            shown = []
            for i, e, page in zip(pair, sides, both, strict=True):
                x, y = (int(c) for c in e.place[i] / evidence.scale)
                shown.append([x, y, _crop(page, x, y, evidence.side / evidence.scale)])
            pairs.append([round(float(cosine), 3), *shown])
        made[row, other] = {
            "similarity": round(evidence.similarity, 4),
            "means": [round(e.mean, 4) for e in sides],
            "heat": [data_uri(_coloured(grid, strongest), _CELLS) for grid, _ in maps],
            "side": evidence.side / evidence.scale,
            "pairs": pairs,
        }
    return made


def _density(
    evidence: PageEvidence, shape: tuple[int, int], side: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Contributions an area, spread over about a patch: float64 [h, w] cells; and at places [n]."""
    cell = max(shape) / _CELLS
    h, w = (max(1, round(n / cell)) for n in shape)
    x, y = (np.clip(evidence.place / scale / cell, 0, (w - 1, h - 1)).astype(int)).T
    grid = np.zeros((h, w))
    np.add.at(grid, (y, x), evidence.contributions)
    grid = cv2.GaussianBlur(grid, (0, 0), side / scale / cell / 3)
    return grid, grid[y, x]


def _coloured(density: np.ndarray, strongest: float) -> np.ndarray:
    """uint8 [h, w, 3], black where nothing speaks; shown so that only dark ink takes the colour."""
    share = np.clip(density / max(strongest, 1e-30), -1, 1)[:, :, None]
    colour = np.where(share > 0, np.array(_FOR), np.array(_AGAINST))
    return (np.abs(share) ** 0.6 * colour).astype(np.uint8)


def _crop(image: np.ndarray, x: int, y: int, side: float) -> str:
    half = max(1, round(_AROUND * side / 2))
    around = cv2.copyMakeBorder(
        image, half, half, half, half, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    part = around[y : y + 2 * half, x : x + 2 * half]
    return data_uri(cv2.resize(part, (_PICTURE, _PICTURE), interpolation=cv2.INTER_AREA), _PICTURE)
