"""A collection in two dimensions, for viewing only: no metric depends on it."""

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits


def project(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE of the cosine distances between rows of x [p, d]: float64 [p, 2] within [0, 1].

    The same descriptors give the same points on one machine. Fewer than three rows are placed on a
    line.
    """
    p = len(x)
    if p < 3:
        return np.stack([np.arange(p) / 2, np.full(p, 0.5)], axis=1)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.maximum(norms, np.float32(1e-12))
    # p points span at most p dimensions: wide descriptors are reduced, with equal distances.
    if unit.shape[1] > p:
        gram = unit.astype(np.float64) @ unit.T
        values, vectors = np.linalg.eigh(gram)
        unit = vectors * np.sqrt(np.maximum(values, 0))
    perplexity = min(30.0, (p - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", random_state=seed, max_iter=500)
    # The steps are so short that several threads are 2 to 15 times slower (measured).
    with threadpool_limits(1):
        points = tsne.fit_transform(unit)
    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-9)
    return ((points - low) / span).astype(np.float64)
