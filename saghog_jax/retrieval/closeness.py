"""Closeness of pages: similarity measured against what is near and what is usual for each page.

A fragment is less similar to all pages than a whole page is, and some pages are similar to many
others. Therefore each page has two levels: its median similarity to the other pages (usual), and
its mean similarity to its nearest eighth of the collection (near). The closeness of two pages is
-1 where their similarity is usual and 0 where it is near, for the one page and for the other, and
the mean of both. In a collection of few writers the nearest eighth is by the page's own writer; so
the near level is at most some deviations above the usual one.

Axis letters: p pages, d width, h hands, r rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix

from saghog_jax.retrieval.aggregate import l2_normalize

# The share of the collection that is near a page, and the fewest pages of it.
NEAR_SHARE, NEAR_FEWEST = 1 / 8, 5
# Largest distance of the near level from the usual one, in deviations of similarities below their
# median: pages by one writer hardly reach below the median, so these deviations are those of pages
# by different writers.
NEAR_MOST = 5.5
# Similarities in memory at once: 64 MB.
_BLOCK_VALUES = 1 << 24
_SMALLEST_STEP = 1e-3


@dataclass(frozen=True)
class Closeness:
    """Pages and their levels; closeness is computed from them in blocks.

    Attributes:
      x: rows of norm 1.
      usual, near: the two levels of each page, as cosine similarities.
    """

    x: Float[np.ndarray, "p d"]
    usual: Float[np.ndarray, " p"]
    near: Float[np.ndarray, " p"]

    def __len__(self) -> int:
        return len(self.x)

    def matrix(self) -> Float[np.ndarray, "p p"]:
        """The closeness of all pairs, float32."""
        scale, shift = self._scale_and_shift()
        s = self.x @ self.x.T
        s *= (scale[:, None] + scale) / 2
        s -= (shift[:, None] + shift) / 2
        return s

    def of_pairs(self, pairs: Int[np.ndarray, "m two"]) -> Float[np.ndarray, " m"]:
        """The closeness of pairs of rows."""
        scale, shift = self._scale_and_shift()
        a, b = pairs.T
        step = max(1, _BLOCK_VALUES // self.x.shape[1])
        s = np.zeros(len(pairs), np.float32)
        for i in range(0, len(pairs), step):
            part = slice(i, i + step)
            s[part] = np.einsum("md,md->m", self.x[a[part]], self.x[b[part]])
        return s * (scale[a] + scale[b]) / 2 - (shift[a] + shift[b]) / 2

    def to_hands(
        self, hands: Int[np.ndarray, " p"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "r h"]]]:
        """The mean closeness of pages to the other pages of each hand, in blocks of pages.

        Args:
          hands: numbered from 0.

        Yields:
          rows and float32 [r, h]; -inf for the hand of a page that is alone.
        """
        scale, shift = self._scale_and_shift()
        count = int(hands.max()) + 1
        places = np.arange(len(hands))
        members = csr_matrix((np.ones(len(hands), np.float32), (hands, places)))
        sizes = np.bincount(hands, minlength=count).astype(np.float32)
        sums, scaled = members @ self.x, members @ (self.x * scale[:, None])
        shifts = members @ shift
        own = np.einsum("pd,pd->p", self.x, self.x)
        step = max(1, _BLOCK_VALUES // count)
        for first in range(0, len(hands), step):
            rows = slice(first, min(first + step, len(hands)))
            x, place = self.x[rows], np.arange(rows.stop - first)
            total = (x @ sums.T) * scale[rows, None] + x @ scaled.T - shifts
            total -= shift[rows, None] * sizes
            # Without the page itself.
            total[place, hands[rows]] -= 2 * (scale[rows] * own[rows] - shift[rows])
            others = np.tile(sizes, (len(place), 1))
            others[place, hands[rows]] -= 1
            yield rows, np.where(others > 0, total / (2 * np.maximum(others, 1)), -np.inf)

    def _scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        scale = 1 / np.maximum(self.near - self.usual, np.float32(_SMALLEST_STEP))
        return scale, self.near * scale


def closeness(descriptors: Float[np.ndarray, "p d"]) -> Closeness:
    """The levels of all pages, in blocks: memory grows with p and not with its square.

    Args:
      descriptors: float32 or float16.
    """
    x = l2_normalize(np.asarray(descriptors, np.float32))
    p = len(x)
    usual, near = np.zeros(p, np.float32), np.zeros(p, np.float32)
    if p < 2:
        return Closeness(x, usual, near)
    most = min(p - 1, max(NEAR_FEWEST, round(NEAR_SHARE * (p - 1))))
    step = max(1, _BLOCK_VALUES // p)
    deviation = _deviation(x)
    for first in range(0, p, step):
        s = _similarities(x, np.arange(first, min(first + step, p)))
        rows = slice(first, first + len(s))
        usual[rows] = np.median(s, axis=1)
        near[rows] = np.partition(s, -most, axis=1)[:, -most:].mean(1)
    return Closeness(x, usual, np.minimum(near, usual + NEAR_MOST * deviation))


def _deviation(x: np.ndarray) -> float:
    """Root mean square distance to the median of the similarities below it, from some rows."""
    count = min(len(x), max(1, _BLOCK_VALUES // len(x)))
    s = _similarities(x, np.linspace(0, len(x) - 1, count).astype(np.int64))
    median = np.median(s)
    return float(np.sqrt(np.mean(np.square(s[s <= median] - median))))


def _similarities(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Similarities of rows to all other pages, float32 [r, p - 1]."""
    s = x[rows] @ x.T
    others = np.ones(s.shape, bool)
    others[np.arange(len(rows)), rows] = False
    return s[others].reshape(len(rows), len(x) - 1)
