"""Pairs of patches of two pages that are alike, the most telling pairs first.

Two patches are as alike as the recipe finds them: the mean cosine of their vectors over the
descriptors of the recipe, weighted as in a page descriptor. Patches without enough ink are no
candidates. A pair consists of mutual nearest neighbours. A shape that is found everywhere, such as
a speck on the paper or a plain downstroke, says little. So pairs are ordered by

    alike * log(n / (1 + m)) / log(n),

the weight of rare words in text search. n is the number of candidates on both pages. m is the
number of further candidates that are at least 90 % as alike to one of the two patches as the pair.

Axis letters: n candidates of both pages, k patches of a page, s side of a patch.
"""

from collections.abc import Sequence

import jax
import numpy as np

from saghog_jax.embedding.pooler import PagePatches
from saghog_jax.evidence.attribution import Part, padded
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.models import netrvlad

# Pairs are searched among so many patches a page, those with the largest contributions.
_CANDIDATES = 256
# Fraction of the likeness of a pair at which a further patch counts as the same shape.
_AS_ALIKE = 0.9


def with_ink(cut: Cut, side: int, min_ink: float) -> np.ndarray:
    """Whether a patch shows enough writing to be judged, bool [k].

    Args:
      side: of the patches, in pixels.
      min_ink: least fraction of ink in the whole patch, and in its middle: half as wide and high.
    """
    ink = np.unpackbits(cut.ink, axis=1).reshape(len(cut.ink), side, side)
    inner = slice(side // 4, side - side // 4)
    whole, middle = ink.mean((1, 2)), ink[:, inner, inner].mean((1, 2))
    return np.minimum(whole, middle) >= min_ink


def like_patches(
    a: Sequence[Part],
    b: Sequence[Part],
    contributions_a: np.ndarray,
    contributions_b: np.ndarray,
    at_most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of patches of two pages that are mutual nearest neighbours, the most telling first.

    Only patches with positive contributions are used, at most 256 a page: those with the largest.
    A pair that overlaps an earlier pair on either page is left out.

    Args:
      a, b: the parts of the recipe at one scale.
      contributions_a, contributions_b: contributions [k] of the patches; zero excludes a patch.

    Returns:
      int64 [m, 2], rows of `a` and of `b`, and float32 [m], how alike they are (at most 1);
      m <= at_most.
    """
    pages = a[0].page, b[0].page
    rows = [
        np.argsort(-values, kind="stable")[: min(_CANDIDATES, int((values > 0).sum()))]
        for values in (contributions_a, contributions_b)
    ]
    n, pairs, alike = len(rows[0]), [], []
    if n and len(rows[1]):
        gram = _likeness(a, b, rows)
        cross = gram[:n, n:]
        best, best_back = cross.argmax(1), cross.argmax(0)
        mutual = np.flatnonzero(best_back[best] == np.arange(n))
        mutual = mutual[cross[mutual, best[mutual]] > 0]
        near = [_near(page, r) for page, r in zip(pages, rows, strict=True)]
        worth = np.array([_worth(gram, near, i, best[i]) for i in mutual])
        for i in mutual[np.argsort(-worth, kind="stable")]:
            if len(pairs) >= at_most:
                break
            j = best[i]
            pair = rows[0][i], rows[1][j]
            if any(
                _overlap(pages[0], pair[0], p) or _overlap(pages[1], pair[1], q) for p, q in pairs
            ):
                continue
            pairs.append(pair)
            alike.append(cross[i, j])
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(alike, np.float32)


def _worth(gram: np.ndarray, near: Sequence[np.ndarray], i: int, j: int) -> float:
    """How telling the pair of candidate i of the first page and j of the second page is."""
    n, first = len(gram), len(near[0])
    alike = gram[i, first + j]
    same = (gram[i] >= _AS_ALIKE * alike) | (gram[first + j] >= _AS_ALIKE * alike)
    # The patches of the pair, and patches that show the same ink, are no further ones.
    same &= ~np.concatenate([near[0][i], near[1][j]])
    return float(alike * np.log(n / (1 + same.sum())) / np.log(n))


def _likeness(a: Sequence[Part], b: Sequence[Part], rows: Sequence[np.ndarray]) -> np.ndarray:
    """How alike the candidates of both pages are: float64 [n, n], those of `a` first."""
    total, weights = 0.0, 0.0
    for of_a, of_b in zip(a, b, strict=True):
        x, assignment = zip(*(_chosen(part.page, r) for part, r in zip((of_a, of_b), rows)))
        gram = _gram(
            np.concatenate(assignment),
            np.concatenate(x),
            of_a.clusters.centroids,
            intra_normalize=of_a.clusters.intra_normalize,
        )
        total = total + of_a.share * np.asarray(gram, np.float64)
        weights += of_a.share
    kept = np.concatenate([np.arange(len(rows[0])), _CANDIDATES + np.arange(len(rows[1]))])
    return total[np.ix_(kept, kept)] / weights


def _chosen(page: PagePatches, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return padded(page.x[rows], page.assignment[rows], _CANDIDATES)


def _near(page: PagePatches, rows: np.ndarray) -> np.ndarray:
    """Whether two candidates of a page overlap, bool [k, k]."""
    place = page.place[rows]
    return (np.abs(place[:, None] - place) < page.side).all(2)


def _overlap(page: PagePatches, i: int, j: int) -> bool:
    return bool((np.abs(page.place[i] - page.place[j]) < page.side).all())


_gram = jax.jit(netrvlad.cosine_gram, static_argnames="intra_normalize")
