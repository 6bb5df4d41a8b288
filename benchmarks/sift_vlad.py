"""The classical baseline: SIFT on the Otsu page, RootSIFT, 100 words of training pages, VLAD.

All keypoints count, as OpenCV finds them. Axis letters: n descriptors.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from saghog_jax.input_pipeline.cutting import binarize, keypoints
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page

WORDS = 100
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
