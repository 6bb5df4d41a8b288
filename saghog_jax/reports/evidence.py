"""The evidence of a match as pictures: ink heat maps, and like patches side by side."""

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np

from saghog_jax.evidence.match import Evidence, PageEvidence
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.reports.thumbnails import data_uri
from saghog_jax.retrieval.embeddings import Embeddings

# Cells along the longer side of a heat map.
_CELLS = 240
# Sides of a patch that its picture shows (report.css frames the middle one), and its pixels.
_AROUND = 3
_PICTURE = 96
# What speaks for and against a match, RGB: told apart by all common kinds of colour vision.
_FOR, _AGAINST = (230, 97, 1), (20, 110, 220)
# Grey as CSS makes it of RGB, what ink becomes of it where colours lie over it (paper becomes 1),
# and patches that are looked at for what ink and paper are.
_GREY = np.array([0.2126, 0.7152, 0.0722]) / 255
_INK, _LOOKED_AT = 0.05, 400


def pictures(
    queries: Embeddings,
    gallery: Embeddings,
    found: Mapping[tuple[int, int], Evidence],
    max_pixels: int,
) -> dict[tuple[int, int], dict]:
    """For each match the data that the report's script shows.

    Returns:
      `similarity`, `means` of both pages, `heat` (data URIs for both), `levels` (for both what
      makes paper white and ink black: CSS `brightness` and `contrast` of the grey page), `sides` of
      a patch in pixels of both, and `pairs`: [cosine, [x, y, data URI] in the query, the same in
      the match]. A match whose images cannot be read any more is left out.
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
        maps = [_density(e, page.shape[:2]) for e, page in zip(sides, both, strict=True)]
        # The strongest ink of both pages takes the full colour; a few outliers do not dim the rest.
        strongest = max(float(np.quantile(np.abs(at), 0.9)) for _, at in maps)
        pairs = []
        for pair, cosine in zip(evidence.pairs, evidence.cosines, strict=True):
            shown = []
            for i, e, page in zip(pair, sides, both, strict=True):
                x, y = e.place[i].tolist()
                shown.append([x, y, _crop(page, x, y, e.side[i])])
            pairs.append([round(float(cosine), 3), *shown])
        made[row, other] = {
            "similarity": round(evidence.similarity, 4),
            "means": [round(e.mean, 4) for e in sides],
            "heat": [data_uri(_coloured(grid, strongest), _CELLS) for grid, _ in maps],
            "levels": [
                _levels(page, e.place, e.side[0]) for e, page in zip(sides, both, strict=True)
            ],
            "sides": [float(e.side[0]) for e in sides],
            "pairs": pairs,
        }
    return made


def _density(evidence: PageEvidence, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Contributions an area, spread over about a patch: float64 [h, w] cells; and at places [n]."""
    cell = max(shape) / _CELLS
    h, w = (max(1, round(n / cell)) for n in shape)
    x, y = (np.clip(evidence.place / cell, 0, (w - 1, h - 1)).astype(int)).T
    grid = np.zeros((h, w))
    for side in np.unique(evidence.side):
        mine = evidence.side == side
        part = np.zeros((h, w))
        np.add.at(part, (y[mine], x[mine]), evidence.contributions[mine])
        grid += cv2.GaussianBlur(part, (0, 0), side / cell / 3)
    return grid, grid[y, x]


def _coloured(density: np.ndarray, strongest: float) -> np.ndarray:
    """uint8 [h, w, 3], black where nothing speaks; shown so that only dark ink takes the colour."""
    share = np.clip(density / max(strongest, 1e-30), -1, 1)[:, :, None]
    colour = np.where(share > 0, np.array(_FOR), np.array(_AGAINST))
    return (np.abs(share) ** 0.6 * colour).astype(np.uint8)


def _levels(page: np.ndarray, place: np.ndarray, side: float) -> tuple[float, float]:
    """Brightness and contrast after which paper is white and ink black, as CSS applies them.

    Without them the colours would show on parchment, stains and shadows as on ink. What is ink and
    what is paper is looked up around the patches: other parts of a scan may be no page at all.
    """
    half = max(1, round(side / 2))
    chosen = np.unique(np.linspace(0, len(place) - 1, _LOOKED_AT).astype(int))
    parts = [
        page[max(0, y - half) : y + half, max(0, x - half) : x + half].reshape(-1, 3)
        for x, y in place[chosen]
    ]
    grey = np.concatenate(parts) @ _GREY
    split = cv2.threshold((grey * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0]
    dark, light = grey[grey * 255 < split + 1], grey[grey * 255 >= split + 1]
    if not len(dark) or not len(light):
        return 1.0, 1.0
    ink, paper = float(np.median(dark)), float(np.quantile(light, 0.25))
    # contrast * (brightness * grey - 1/2) + 1/2 leads from ink to _INK (or below) and from paper to
    # 1. Brightness alone must not reach 1, where it would be cut off.
    slope = max((1 - _INK) / max(paper - ink, 0.05), 1 / paper)
    contrast = 2 * slope * paper - 1
    return round(slope / contrast, 3), round(contrast, 3)


def _crop(image: np.ndarray, x: int, y: int, side: float) -> str:
    half = max(1, round(_AROUND * side / 2))
    around = cv2.copyMakeBorder(
        image, half, half, half, half, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    part = around[y : y + 2 * half, x : x + 2 * half]
    return data_uri(cv2.resize(part, (_PICTURE, _PICTURE), interpolation=cv2.INTER_AREA), _PICTURE)
