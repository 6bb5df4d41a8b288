"""SIFT-VLAD: what a page's SIFT descriptors sum up to, without any training on writers.

RootSIFT, words by k-means, sums of residuals, signed square root. Axis letters: n descriptors,
v words, p pages.
"""

from collections.abc import Iterable

import numpy as np

from saghog_jax.input_pipeline.labels.pseudo_labels import root_sift

# Descriptors a page that the words are fitted on.
FIT_A_PAGE = 200


def fit_words(descriptors: Iterable[np.ndarray], words: int, seed: int = 0) -> np.ndarray:
    """k-means centres of RootSIFT, float32 [v, 128], of a sample of every page's raw SIFT."""
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
    """Sum of residuals by word, float32 [v * 128], of raw SIFT [n, 128]; zeros without any."""
    x = root_sift(descriptors)
    nearest = (2 * x @ words.T - np.square(words).sum(1)).argmax(1)
    assigned = np.zeros((len(words), len(x)), np.float32)
    assigned[nearest, np.arange(len(x))] = 1
    return (assigned @ x - assigned.sum(1)[:, None] * words).reshape(-1)


def page_vectors(descriptors: Iterable[np.ndarray], words: np.ndarray) -> np.ndarray:
    """Unit signed square roots of VLAD, float32 [p, v * 128], of the raw SIFT [n, 128] of pages."""
    sums = np.stack([vlad(d, words) for d in descriptors])
    roots = np.sign(sums) * np.sqrt(np.abs(sums))
    return roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)
