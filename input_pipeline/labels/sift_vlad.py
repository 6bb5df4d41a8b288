"""SIFT-VLAD: a page descriptor from SIFT descriptors alone, without training on writers.

RootSIFT, visual words by k-means, sums of residuals, signed square root. Axis letters: n SIFT
descriptors, v visual words, p pages.
"""

from collections.abc import Iterable

import numpy as np

from saghog_jax.input_pipeline.labels.pseudo_labels import root_sift

# SIFT descriptors per page that the visual words are fitted on.
FIT_A_PAGE = 200


def fit_words(descriptors: Iterable[np.ndarray], words: int, seed: int = 0) -> np.ndarray:
    """Visual words, float32 [v, 128]: k-means centres of RootSIFT.

    Args:
      descriptors: raw SIFT, uint8 [n, 128], of each page; a sample of each page is used.
      words: number of visual words, v.
      seed: of sampling and k-means.
    """
    rng = np.random.default_rng(seed)
    sample = [d[rng.permutation(len(d))[:FIT_A_PAGE]] for d in descriptors]
    return centres(root_sift(np.concatenate(sample)), words, seed)


def centres(x: np.ndarray, words: int, seed: int = 0) -> np.ndarray:
    """k-means centres, float32 [v, 128], of RootSIFT [n, 128]."""
    # Imported here: only this function needs scikit-learn, which takes a second to import.
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(words, batch_size=16_384, n_init=1, random_state=seed)
    return kmeans.fit(x).cluster_centers_.astype(np.float32)


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sum of residuals to each visual word, float32 [v * 128], of raw SIFT [n, 128].

    Zeros if n is 0.
    """
    x = root_sift(descriptors)
    nearest = (2 * x @ words.T - np.square(words).sum(1)).argmax(1)
    assigned = np.zeros((len(words), len(x)), np.float32)
    assigned[nearest, np.arange(len(x))] = 1
    return (assigned @ x - assigned.sum(1)[:, None] * words).reshape(-1)


def page_vectors(descriptors: Iterable[np.ndarray], words: np.ndarray) -> np.ndarray:
    """SIFT-VLAD of pages: signed square roots, L2-normalised, float32 [p, v * 128].

    Args:
      descriptors: raw SIFT, uint8 [n, 128], of each page.
      words: from `fit_words`.
    """
    sums = np.stack([vlad(d, words) for d in descriptors])
    roots = np.sign(sums) * np.sqrt(np.abs(sums))
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)
