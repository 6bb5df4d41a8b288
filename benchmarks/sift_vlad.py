"""The classical baseline: SIFT on the Otsu page, RootSIFT, 100 words of training pages, VLAD.

All keypoints count, as OpenCV finds them. Axis letters: n descriptors, v words, p pages.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from sklearn.cluster import MiniBatchKMeans

from input_pipeline import binarize, keypoints
from input_pipeline.images import load_page
from input_pipeline.manifest import Manifest, Page
from input_pipeline.pseudo_labels import root_sift
from saghog_jax.retrieval.aggregate import l2_normalize, power_norm

WORDS = 100
# Descriptors a training page that the words are fitted on.
FIT_A_PAGE = 200
_SIGMA = 1.6


def describe(root: Path, page: Page) -> np.ndarray:
    """Raw SIFT descriptors of a page, uint8 [n, 128]."""
    cv2.setNumThreads(1)
    grey = binarize.to_grey(load_page(root / page.path, page.box, 200_000_000), "opencv")
    image = (1 - binarize.ink_mask(grey, "otsu")) * 255
    found = keypoints.detect(image, _SIGMA)
    return keypoints.describe(image, found, np.arange(len(found.positions)), _SIGMA)


def described(
    manifest: Manifest, workers: int, by: Callable[[Path, Page], np.ndarray] = describe
) -> Iterator[np.ndarray]:
    """Descriptors of all pages, in order, by several processes."""
    # Not forked: this process may have threads of jax by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(partial(by, manifest.root), manifest.pages, chunksize=8)


def fit_words(descriptors: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """k-means centres of RootSIFT, float32 [v, 128], of a sample of every page."""
    rng = np.random.default_rng(seed)
    sample = [d[rng.permutation(len(d))[:FIT_A_PAGE]] for d in descriptors]
    kmeans = MiniBatchKMeans(WORDS, batch_size=16_384, n_init=1, random_state=seed)
    return kmeans.fit(root_sift(np.concatenate(sample))).cluster_centers_.astype(np.float32)


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sum of residuals by word, float32 [v * 128]; zeros without descriptors."""
    x = root_sift(descriptors)
    nearest = (2 * x @ words.T - np.square(words).sum(1)).argmax(1)
    assigned = np.zeros((len(words), len(x)), np.float32)
    assigned[nearest, np.arange(len(x))] = 1
    return (assigned @ x - assigned.sum(1)[:, None] * words).reshape(-1)


def page_descriptors(manifest: Manifest, words: np.ndarray, workers: int) -> np.ndarray:
    """`page_vectors` of a table of pages."""
    return page_vectors(described(manifest, workers), words)


def page_vectors(descriptors: Iterable[np.ndarray], words: np.ndarray) -> np.ndarray:
    """Signed square roots of VLAD, unit rows, float32 [p, v * 128], of the [n, 128] of pages."""
    return l2_normalize(power_norm(np.stack([vlad(d, words) for d in descriptors]), 0.5))
