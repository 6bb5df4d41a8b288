"""What finding handwriting without weights costs a page, and what it brings to retrieval.

    python -m benchmarks.regions [--rounds 7] [--pages MANIFEST.csv ...]

Seconds and memory of the backend `ink` on scans of 3 and 12 megapixels, written by the built-in
corpus, on one core. With `--pages`, manifests of page scans with the columns writer and split:
mAP and Top-1 of the classical baseline (SIFT on the page binarised by Otsu, RootSIFT, 100 words,
VLAD, signed root) on their `test` pages with all keypoints and with those in the regions alone; the
words are fitted on the `train` pages of the same variant. Pages are the whole images; where a
manifest has boxes, they are taken for the text, and the share of its ink that the regions keep is
told, and of the edges around it, on the `train` pages, which `ink` was looked at on.

Writes runs/benchmarks/regions.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from sklearn.cluster import MiniBatchKMeans

from benchmarks.measure import Report, alternate, peak_memory
from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.cutting.patches import Rule, cut_page
from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, read_csv
from saghog_jax.input_pipeline.processes.workers import one_thread
from saghog_jax.input_pipeline.regions.ink import find_ink
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.ranking import score_rows

SIZES = {"3 megapixels": (2000, 1500), "12 megapixels": (4000, 3000)}
WORDS = 100
# Descriptors of a page that the words are fitted on.
FITTED = 2000


def scan(size: str) -> np.ndarray:
    """A written page of this size, uint8 [h, w, 3]."""
    height, width = SIZES[size]
    corpus = synthetic.Corpus(width=750, height=1000, lines=14)
    page = synthetic.render_page(corpus, 0)
    return cv2.resize(page, (width, height), interpolation=cv2.INTER_CUBIC)


def make_find(size: str) -> Callable[[], object]:
    """The backend on a scan that is decoded already, on one thread."""
    page, parameters = scan(size), regions_config("ink").ink.to_dict()

    def find() -> None:
        with one_thread():
            find_ink(page, **parameters)

    return find


def descriptors(manifest: Manifest, regions: bool) -> list[np.ndarray]:
    """RootSIFT of each page, float32 [n, 128]."""
    store = common.store_config("offline")
    store.max_patches_per_page, store.keep, store.min_ink = -1, "ink", 0.0
    rule, parameters = Rule.from_config(store), regions_config("ink").ink.to_dict()
    found = []
    for page in manifest.pages:
        image = load_page(manifest.root / page.path, None, 10**9)
        mask = find_ink(image, **parameters).mask if regions else None
        raw = cut_page(image, rule, mask=mask).descriptors.astype(np.float32)
        found.append(np.sqrt(raw / np.maximum(raw.sum(1, keepdims=True), 1)))
    return found


def vlad(pages: list[np.ndarray], train: np.ndarray) -> np.ndarray:
    """Page descriptors, float32 [p, WORDS * 128], of length 1; `train` bool [p] fits the words."""
    rng = np.random.default_rng(0)
    sample = [x[rng.permutation(len(x))[:FITTED]] for x, t in zip(pages, train) if t]
    words = MiniBatchKMeans(WORDS, random_state=0, n_init=3, batch_size=4096)
    words.fit(np.concatenate(sample))
    centres = words.cluster_centers_
    made = np.zeros((len(pages), WORDS, 128), np.float32)
    for row, x in enumerate(pages):
        nearest = words.predict(x) if len(x) else np.zeros(0, int)
        np.add.at(made[row], nearest, x - centres[nearest])
    flat = made.reshape(len(pages), -1)
    flat = np.sign(flat) * np.sqrt(np.abs(flat))
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def kept_in_boxes(manifest: Manifest) -> tuple[list[float], list[float]]:
    """Shares that regions keep on each page: of the ink in its box, of the edges well outside."""
    parameters = regions_config("ink").ink.to_dict()
    inside, outside = [], []
    for page in manifest.pages:
        image = load_page(manifest.root / page.path, None, 10**9)
        mask, grey = find_ink(image, **parameters).mask, to_grey(image, "pillow")
        x0, y0, x1, y1 = page.box
        ink = ink_mask(grey, "isauvola")[y0:y1, x0:x1] > 0
        edges = cv2.Canny(cv2.GaussianBlur(grey, (5, 5), 0), 100, 200) > 0
        edges[max(0, y0 - 20) : y1 + 20, max(0, x0 - 20) : x1 + 20] = False
        inside.append(float((ink & mask[y0:y1, x0:x1]).sum() / max(ink.sum(), 1)))
        outside.append(float((edges & mask).sum() / max(edges.sum(), 1)))
    return inside, outside


def retrieval(report: Report, table: Path) -> None:
    """Adds the figures of one manifest, without regions and with them."""
    manifest = read_csv(table)
    train = np.array([page.split == "train" for page in manifest.pages])
    if all(page.box for page in manifest.pages):
        for what, shares in zip(("ink", "edges around"), kept_in_boxes(manifest.select("train"))):
            report.add(f"{table.parent.name}, mean share of {what} kept", np.mean(shares), "")
            report.add(f"{table.parent.name}, share of {what} kept a page", shares, "")
    labels = metrics.encode_labels(np.array([page.writer for page in manifest.pages]))[~train]
    for name, regions in (("whole pages", False), ("regions", True)):
        with one_thread():
            pages = descriptors(manifest, regions)
        found = metrics.evaluate(score_rows(vlad(pages, train)[~train]), labels)
        figures = metrics.summarize(found)
        what = f"{table.parent.name}, {name}, {figures['queries']} queries"
        report.add(f"{what}, mAP", figures["map"], "")
        report.add(f"{what}, Top-1", figures["top1"], "")
        report.add(f"{what}, keypoints a page", [len(x) for x in pages], "")


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pages", nargs="*", default=[], help="manifests of page scans")
    args = parser.parse_args()
    report = Report("regions")
    sides = {size: make_find(size) for size in SIZES}
    for size, times in alternate(args.rounds, **sides).items():
        report.add(f"ink, {size}", times.wall, "s")
        target = "<= 0.3" if size == "3 megapixels" else ""
        report.add(f"ink, {size}, CPU", times.cpu, "CPU s", target)
    for size in SIZES:
        report.add(f"ink, {size}, more memory", peak_memory(make_find, size).growth, "MiB")
    for table in args.pages:
        retrieval(report, Path(table))
    report.write()


if __name__ == "__main__":
    main()
