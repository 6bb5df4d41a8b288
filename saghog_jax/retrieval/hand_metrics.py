"""Metrics of pages sorted into hands: BCubed precision, recall and F, adjusted Rand index.

Pages without a known writer are left out before anything is counted. Axis letters: p pages, n
pages of a known writer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class BCubed:
    """BCubed precision and recall of each page of a known writer (Bagga and Baldwin, 1998).

    Attributes:
      labels: the writers.
      precision: of each page, the share of its hand that is by its writer; the page counts too.
      recall: of each page, the share of its writer's pages that are in its hand.
    """

    labels: Int[np.ndarray, " n"]
    precision: Float[np.ndarray, " n"]
    recall: Float[np.ndarray, " n"]

    @property
    def f(self) -> float:
        """Harmonic mean of mean precision and mean recall."""
        return _f(float(self.precision.mean()), float(self.recall.mean()))


def bcubed(hands: Int[np.ndarray, " p"], labels: Int[np.ndarray, " p"]) -> BCubed:
    """BCubed precision and recall of each page.

    Args:
      hands: int [p], equal for pages of one hand.
      labels: int [p], the writers, -1 = unknown.

    Raises:
      ValueError: no page has a label.
    """
    hands, labels = _known(hands, labels)
    together = np.unique(np.stack([hands, labels], 1), axis=0, return_inverse=True)[1]
    sizes = [_size(codes) for codes in (together, hands, labels)]
    return BCubed(labels, sizes[0] / sizes[1], sizes[0] / sizes[2])


def figures(hands: Int[np.ndarray, " p"], labels: Int[np.ndarray, " p"]) -> dict[str, float | int]:
    """All metrics of one sorting, as a flat dict.

    Returns:
      `bcubed_precision`, `bcubed_recall`, `bcubed_f`, `adjusted_rand`, and `hands` beside
      `writers`: how many there are among the pages of a known writer.

    Raises:
      ValueError: no page has a label.
    """
    # Imported late: scikit-learn takes seconds to load.
    from sklearn.metrics import adjusted_rand_score

    b = bcubed(hands, labels)
    hands, labels = _known(hands, labels)
    return {
        "bcubed_precision": float(b.precision.mean()),
        "bcubed_recall": float(b.recall.mean()),
        "bcubed_f": b.f,
        "adjusted_rand": float(adjusted_rand_score(labels, hands)),
        "hands": len(np.unique(hands)),
        "writers": len(np.unique(labels)),
    }


def difference(
    a: Sequence[BCubed],
    b: Sequence[BCubed],
    samples: int,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The mean BCubed F of `a` minus that of `b`, with its paired bootstrap interval.

    Whole writers are drawn with replacement; each draw is used for both and for all sortings. The
    sortings themselves stay as they are.

    Args:
      a, b: sortings of the same pages by two methods: one of each, or several, such as those of
        several selections of the pages.

    Returns:
      the difference, the low and the high end of its interval.

    Raises:
      ValueError: the labels of `a` and `b` differ, or they have fewer than two writers.
    """
    if len(a) != len(b) or any(not np.array_equal(x.labels, y.labels) for x, y in zip(a, b)):
        raise ValueError("the two methods have sorted different pages")
    writers = np.unique(np.concatenate([x.labels for x in a]))
    if len(writers) < 2:
        raise ValueError(f"the pages have {len(writers)} writer; an interval needs two")
    draws = np.random.default_rng(seed).multinomial(
        len(writers), np.full(len(writers), 1 / len(writers)), size=samples
    )
    # The first draw has each writer once: the pages as they are.
    draws = np.concatenate([np.ones((1, len(writers)), draws.dtype), draws])
    gain = _mean_f(a, writers, draws) - _mean_f(b, writers, draws)
    low, high = np.nanquantile(gain[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(gain[0]), float(low), float(high)


def _mean_f(sortings: Sequence[BCubed], writers: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean F [samples] of the sortings for each draw of writers [samples, writers]."""
    total = np.zeros(len(draws))
    for b in sortings:
        place = np.searchsorted(writers, b.labels)
        sums = [np.bincount(place, w, len(writers)) for w in (None, b.precision, b.recall)]
        count, precision, recall = (draws @ np.stack(sums, 1)).T
        # A draw without any page of this sorting has no F.
        with np.errstate(invalid="ignore"):
            total += _f(precision / count, recall / count)
    return total / len(sortings)


def _f(
    precision: float | Float[np.ndarray, " s"], recall: float | Float[np.ndarray, " s"]
) -> float | Float[np.ndarray, " s"]:
    return 2 * precision * recall / (precision + recall)


def _size(codes: np.ndarray) -> np.ndarray:
    """Number of pages with the same code, for each page."""
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return counts[inverse]


def _known(hands: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = labels >= 0
    if not known.any():
        raise ValueError("no page has a label")
    return hands[known], labels[known]
