"""Plots of an evaluation as coordinates, which a template draws: curve, spread and map.

Axis letters: p pages, d width of a descriptor.
"""

from collections.abc import Sequence

import numpy as np

from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.results import Result

# Left margin, and size of the plotted area, in units of the SVG.
_LEFT, _WIDTH, _HEIGHT = 44, 360, 220
_TOP_CURVE, _TOP_SPREAD = 8, 20
# Room at the right and below, for labels.
_RIGHT, _BELOW = 12, 26
_RANKS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
# Styles of lines in sheets.css.
_LINE_STYLES = 6


def curve(results: Sequence[Result]) -> dict:
    """Percentage of queries with a relevant page among the first k, over k: a line a result."""
    longest = max(int(r.evaluation.gallery.max(initial=1)) for r in results)
    ks = np.unique(np.round(np.geomspace(1, max(2, longest), 60)).astype(int))
    x = _LEFT + _WIDTH * np.log(ks) / np.log(ks[-1])
    lines = []
    # Of up to three lines, the last one, which the report is about, has the solid style.
    for i, result in enumerate(results, start=max(0, 3 - len(results))):
        share = (result.evaluation.first[:, None] <= ks).mean(0)
        y = _TOP_CURVE + _HEIGHT * (1 - share)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append({"style": f"l{i % _LINE_STYLES}", "points": points, "name": _short(result)})
    return {
        "left": _LEFT,
        "inner": _WIDTH,
        "width": _LEFT + _WIDTH + _RIGHT,
        "height": _TOP_CURVE + _HEIGHT + _BELOW,
        "shares": [(_TOP_CURVE + _HEIGHT * (1 - n / 100), n) for n in (0, 25, 50, 75, 100)],
        "ranks": [(_LEFT + _WIDTH * np.log(k) / np.log(ks[-1]), k) for k in _RANKS if k <= ks[-1]],
        "lines": lines,
    }


def spread(evaluation: metrics.Evaluation) -> dict:
    """Number of queries by average precision, in ten bars."""
    counts = np.histogram(evaluation.ap, bins=10, range=(0, 1))[0].tolist()
    height = _HEIGHT - _TOP_SPREAD + _TOP_CURVE
    bottom, step = _TOP_SPREAD + height, _WIDTH / len(counts)
    bars = []
    for i, count in enumerate(counts):
        tall = height * count / max(counts)
        bars.append(
            {
                "x": _LEFT + i * step + 2,
                "y": bottom - tall,
                "width": step - 4,
                "height": tall,
                "count": count,
            }
        )
    return {
        "left": _LEFT,
        "inner": _WIDTH,
        "bottom": bottom,
        "width": _LEFT + _WIDTH + _RIGHT,
        "height": bottom + _BELOW,
        "percents": [(_LEFT + _WIDTH * n / 100, n) for n in range(0, 101, 20)],
        "bars": bars,
    }


def map_points(pages: Embeddings, descriptors: np.ndarray, limit: int) -> list[dict]:
    """Points of at most `limit` pages on the map of the collection; none for fewer than three.

    Args:
      descriptors: [p, d].
    """
    if len(pages) < 3 or limit < 3:
        return []
    # Imported late: it loads scikit-learn.
    from saghog_jax.reports.projection import project

    count = min(len(pages), limit)
    rows = np.floor(np.linspace(0, len(pages) - 1, count)).astype(int)
    points = project(np.asarray(descriptors[rows], np.float32))
    return [
        {
            "row": int(row),
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "id": str(pages.page_ids[row]),
            "writer": str(pages.writers[row]),
        }
        for row, (x, y) in zip(rows, points, strict=True)
    ]


def _short(result: Result) -> str:
    """The name of a result in a legend, such as `ours + pca`."""
    steps = [result.whitening.split(",")[0], result.reranking.split(" (")[0]]
    return " + ".join([result.name, *(step for step in steps if step != "none")])
