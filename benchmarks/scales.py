"""At which scale windows of 32 pixels tell writers apart, by fixed descriptors.

    python -m benchmarks.scales DATA

DATA holds the sets of benchmarks/quality.py, of which the *training* halves are read. Pages are
resized, and SIFT describes the 32 x 32 pixels around each keypoint, upright; VLAD of 100 words,
fitted on a quarter of the training pages, describes the fragments of validation writers. Two rows
are of pages as they are, with the angles that SIFT finds, and with its sizes too. Prints mAP as a
Markdown table.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks import quality_data
from benchmarks.sift_vlad import WORDS, described
from saghog_jax.input_pipeline.cutting import binarize
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page, read_csv
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.ranking import score_rows

SCALES = (0.5, 2 / 3, 1.0, 1.5, 2.0)
# A descriptor of SIFT covers six times its keypoint's size.
_SIZE = 32 / 6
# The set, and what of the query's a gallery must not share.
PROTOCOLS = (("copiste_fr", "source"), ("copiste_fr", "sheet"), ("hist_mss", "source"))


def describe(scale: float, keep: str, root: Path, page: Page) -> np.ndarray:
    """Raw SIFT descriptors of a resized page, uint8 [n, 128].

    Args:
      scale: factor that the page is resized by.
      keep: of SIFT's keypoints besides their places: `all`, their `angles`, or `` (nothing).
      root: folder of the manifest.
      page: the page.
    """
    cv2.setNumThreads(1)
    grey = binarize.to_grey(load_page(root / page.path, page.box, 200_000_000), "opencv")
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    image = (1 - binarize.ink_mask(grey, "otsu")) * np.uint8(255)
    sift = cv2.SIFT_create()
    found = sift.detect(image)
    if keep != "all":
        found = [
            cv2.KeyPoint(*k.pt, _SIZE, k.angle if keep == "angles" else 0, k.response, 0)
            for k in found
        ]
    _, descriptors = sift.compute(image, found)
    return np.zeros((0, 128), np.uint8) if descriptors is None else descriptors.astype(np.uint8)


def main() -> None:
    """Describes the fragments at every scale and evaluates them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        paths = quality_data.write_manifests(args.data, Path(folder), "validation")
        train, asked = read_csv(paths["train"]), read_csv(paths["fragments"])
        some = Manifest(train.root, train.pages[::4], train.columns)
        columns = {
            key: np.array([page.extra[key] for page in asked.pages])
            for key in ("set", "source", "sheet")
        }
        writers = np.array([page.writer for page in asked.pages])
        names = (f"{name}, same {key} left out" for name, key in PROTOCOLS)
        print("| page resized by | keypoints | " + " | ".join(names) + " |")
        print("|---|---|" + "---|" * len(PROTOCOLS))
        ways = [(1.0, "all"), (1.0, "angles"), *((scale, "") for scale in SCALES)]
        for scale, keep in ways:
            by = partial(describe, scale, keep)
            words = sift_vlad.fit_words(list(described(some, workers, by)), WORDS)
            found = list(described(asked, workers, by))
            x = sift_vlad.page_vectors(found, words)
            cells = [f"{scale:.2g}" + (f", SIFT's {keep}" if keep else "")]
            cells.append(f"{np.mean([len(d) for d in found]):.0f}")
            for name, key in PROTOCOLS:
                rows = np.flatnonzero(columns["set"] == name)
                codes = [metrics.encode_labels(c[rows]) for c in (writers, columns[key])]
                e = metrics.evaluate(score_rows(x[rows]), *codes, ks=(1,))
                cells.append(f"{metrics.summarize(e)['map']:.3f}")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
