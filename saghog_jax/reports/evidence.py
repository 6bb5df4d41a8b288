"""The evidence of a match as pictures: heat maps of the ink, and pairs of similar patches."""

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np

from saghog_jax.evidence.records import Evidence, PageEvidence
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.reports.thumbnails import data_uri
from saghog_jax.retrieval.embeddings import Embeddings

# Cells along the longer side of a heat map.
_CELLS = 240
# Side of the picture of a patch: in sides of the patch (sheets.css frames it), and in pixels.
_CONTEXT = 3
_PICTURE = 96
# Colours (RGB) of positive and negative contributions, distinct for all common colour visions.
_FOR, _AGAINST = (230, 97, 1), (20, 110, 220)
# Weights of the CSS filter `grayscale`, for values of 0 to 255.
_GREY = np.array([0.2126, 0.7152, 0.0722]) / 255
# Grey level of ink below the colours, where paper is 1.
_INK = 0.05
# Patches whose surroundings decide the grey levels of ink and paper.
_LEVEL_PATCHES = 400


def pictures(
    queries: Embeddings,
    gallery: Embeddings,
    evidence: Mapping[tuple[int, int], Evidence],
    max_pixels: int,
) -> dict[tuple[int, int], dict]:
    """The data of each match that the script of the report shows.

    Returns:
      for each match a dictionary: `similarity`; for query and match `means` (similarity to the
      average page), `heat` (data URI of the heat map), `levels` (CSS `brightness` and `contrast`
      that make paper white and ink black), `sides` (of a patch, in pixels); and `pairs` of patches
      as [alike, [x, y, data URI] in the query, the same in the match]. Matches with an unreadable
      image are left out.
    """

    # Two images, so that the query of several matches is decoded once.
    @lru_cache(maxsize=2)
    def image(of_query: bool, row: int) -> np.ndarray | None:
        pages = queries if of_query else gallery
        try:
            return load_page(pages.image(row), pages.box(row), max_pixels)
        except PageError:
            return None

    shown: dict[tuple[int, int], dict] = {}
    for (row, other), match in evidence.items():
        both = image(True, row), image(False, other)
        if any(page is None for page in both):
            continue
        sides = match.query, match.match
        maps = [_density(e, page.shape[:2]) for e, page in zip(sides, both, strict=True)]
        # Full colour for the strongest ink of both pages; the quantile excludes a few outliers.
        strongest = max(float(np.quantile(np.abs(at), 0.9)) for _, at in maps)
        pairs = []
        for pair, alike in zip(match.pairs, match.alike, strict=True):
            patches = []
            for i, e, page in zip(pair, sides, both, strict=True):
                x, y = e.place[i].tolist()
                patches.append([x, y, _crop(page, x, y, e.side[i])])
            pairs.append([round(float(alike), 3), *patches])
        shown[row, other] = {
            "similarity": round(match.similarity, 4),
            "means": [round(e.mean, 4) for e in sides],
            "heat": [data_uri(_coloured(grid, strongest), _CELLS) for grid, _ in maps],
            "levels": [
                _levels(page, e.place, e.side[0]) for e, page in zip(sides, both, strict=True)
            ],
            "sides": [float(e.side[0]) for e in sides],
            "pairs": pairs,
        }
    return shown


def _density(evidence: PageEvidence, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The density of the contributions, blurred over about a patch.

    Returns:
      float64 [h, w], by cell; and [n], at the place of each patch.
    """
    cell = max(shape) / _CELLS
    h, w = (max(1, round(n / cell)) for n in shape)
    x, y = (np.clip(evidence.place / cell, 0, (w - 1, h - 1)).astype(int)).T
    grid = np.zeros((h, w))
    for side in np.unique(evidence.side):
        of_side = evidence.side == side
        part = np.zeros((h, w))
        np.add.at(part, (y[of_side], x[of_side]), evidence.contributions[of_side])
        grid += cv2.GaussianBlur(part, (0, 0), side / cell / 3)
    return grid, grid[y, x]


def _coloured(density: np.ndarray, strongest: float) -> np.ndarray:
    """The heat map uint8 [h, w, 3], black for no contribution; CSS colours dark ink alone."""
    share = np.clip(density / max(strongest, 1e-30), -1, 1)[:, :, None]
    colour = np.where(share > 0, np.array(_FOR), np.array(_AGAINST))
    return (np.abs(share) ** 0.6 * colour).astype(np.uint8)


def _levels(page: np.ndarray, place: np.ndarray, side: float) -> tuple[float, float]:
    """CSS brightness and contrast that make paper white and ink black.

    Without them, the colours would also appear on parchment, stains and shadows. The grey levels of
    ink and paper are measured around the patches, because other parts of a scan may not be paper.
    """
    half = max(1, round(side / 2))
    chosen = np.unique(np.linspace(0, len(place) - 1, _LEVEL_PATCHES).astype(int))
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
    # contrast * (brightness * grey - 1/2) + 1/2 maps ink to _INK (or below) and paper to 1.
    # brightness * grey must stay below 1, because CSS clips it there.
    slope = max((1 - _INK) / max(paper - ink, 0.05), 1 / paper)
    contrast = 2 * slope * paper - 1
    return round(slope / contrast, 3), round(contrast, 3)


def _crop(image: np.ndarray, x: int, y: int, side: float) -> str:
    half = max(1, round(_CONTEXT * side / 2))
    around = cv2.copyMakeBorder(
        image, half, half, half, half, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    part = around[y : y + 2 * half, x : x + 2 * half]
    return data_uri(cv2.resize(part, (_PICTURE, _PICTURE), interpolation=cv2.INTER_AREA), _PICTURE)
