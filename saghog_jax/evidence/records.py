"""What evidence is made of: the pages that were compared, and the evidence of one match."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.whitening import Whitening


@dataclass(frozen=True)
class Compared:
    """Pages that were compared, and the descriptors that ranked them (before re-ranking)."""

    queries: Embeddings
    gallery: Embeddings  # the same object where pages are compared among themselves
    query_descriptors: np.ndarray  # float32 or float16 [q, k]
    gallery_descriptors: np.ndarray  # float32 or float16 [p, k]
    whitening: Whitening | None
    ranking: Ranking


class PageEvidence(NamedTuple):
    """One page of a match.

    place: int [n, 2], x and y of the patches in pixels of the image file.
    side: [n], sides of the patches in these pixels.
    contributions: float32 [n], of each patch to the similarity.
    mean: the page's mean similarity to the pages of the gallery.
    """

    place: np.ndarray
    side: np.ndarray
    contributions: np.ndarray
    mean: float


class Evidence(NamedTuple):
    """What makes a query and a page of the gallery similar.

    pairs: int64 [m, 2], rows of similar patches in `query` and `match`, the most telling first.
    alike: float32 [m], how alike they are; 1 at most.
    """

    similarity: float
    query: PageEvidence
    match: PageEvidence
    pairs: np.ndarray
    alike: np.ndarray
