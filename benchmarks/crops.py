"""Pretraining input cut on the fly, against a loop written as the published code works.

    python -m benchmarks.crops [--slots 32] [--rounds 15] [--folder FOLDER]

The loop takes a page at a time: Pillow crops, makes grey and cuts every patch, numpy counts the ink
of each. Both sides take the same number of random crops of 256 pixels of the built-in corpus, up to
32 patches of each, alternately, on one thread, with memory kept as worker processes keep it.
Three cases:

  decoded  pages are in memory: crops to patches
  kept     ours keeps decoded pages (all fit), the loop opens the file each time
  files    both open the file each time: pages are too many to keep

Patches a second of a core (patches over CPU time of the process), and their ratio round by round.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import doxapy
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.measure import Report, alternate
from saghog_jax.configs.pretrain import get_config
from saghog_jax.input_pipeline.batches.crops import Cutter, Recipe
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.processes.workers import keep_memory, keep_to_one_thread

SIZE, PATCH, MOST = 256, 32, 32
ALGORITHMS = doxapy.Binarization.Algorithms


def binarized(
    image: Image.Image, algorithm: doxapy.Binarization.Algorithms, parameters: dict
) -> Image.Image:
    """A binary image of mode L by doxapy."""
    grey = np.array(image.convert("L"))
    binarization = doxapy.Binarization(algorithm)
    binarization.initialize(grey)
    binary = np.empty_like(grey)
    binarization.to_binary(binary, parameters)
    return Image.fromarray(binary)


def loop_slot(page: Image.Image, sift: cv2.SIFT, rng: np.random.Generator) -> list:
    """The patches and masks of a random crop, one patch after the other."""
    left, top = (int(rng.integers(side - SIZE + 1)) for side in page.size)
    crop = page.crop((left, top, left + SIZE, top + SIZE))
    if rng.random() < 0.2:
        crop = crop.convert("L").convert("RGB")
    if rng.random() < 0.2:
        crop = binarized(crop, ALGORITHMS.SU, {"window": 0, "minN": 0})
        mask = crop
    else:
        mask = binarized(crop, ALGORITHMS.ISAUVOLA, {"window": 75, "k": 0.2})
    found = sift.detect(np.array(mask), None)
    points = np.array([point.pt for point in found]).reshape(-1, 2).astype(int)
    points = np.unique(points, axis=0)
    rng.shuffle(points)
    kept = []
    for x, y in points:
        box = (x - PATCH // 2, y - PATCH // 2, x + PATCH // 2, y + PATCH // 2)
        binary = mask.crop(box)
        share = np.sum(np.array(binary) == 0) / PATCH**2
        if 0.08 <= share <= 0.8:
            kept.append((crop.crop(box), binary))
    if len(kept) > MOST:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MOST).astype(int)]
    return kept


def read(path: Path) -> Image.Image:
    """An RGB page."""
    with Image.open(path) as image:
        return image.convert("RGB")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", default=None, help="for the corpus; kept if given")
    args = parser.parse_args()
    keep_to_one_thread()
    keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        config = get_config("source=crops")
        config.data.cache = args.folder or temporary
        measure(config, args.slots, args.rounds)


def measure(config: ConfigDict, slots: int, rounds: int) -> None:
    """Runs both sides alternately in the three cases."""
    manifest = load_manifest(config.data)
    recipe = Recipe.from_config(manifest, config.data, config.store, config.crops, config.seed)
    paths = [manifest.root / page.path for page in manifest.pages]
    decoded = [read(path) for path in paths]
    sift = cv2.SIFT_create()
    report = Report("crops")
    everything, nothing = 10**12, 0
    for case, cache_bytes, pages in (
        ("decoded", everything, decoded),
        ("kept", everything, None),
        ("files", nothing, None),
    ):
        cutter = Cutter(recipe, cache_bytes)
        if cache_bytes:
            for slot in range(len(paths)):
                cutter(slot)

        counts = {"loop": [], "ours": []}

        def ours(cutter=cutter, counts=counts["ours"]) -> None:
            first = len(counts) * slots
            counts.append(sum(len(cutter(slot).patches) for slot in range(first, first + slots)))

        def loop(pages=pages, counts=counts["loop"]) -> None:
            rng = np.random.default_rng(len(counts))
            rows = rng.integers(len(paths), size=slots)
            slot_pages = (pages[row] if pages else read(paths[row]) for row in rows)
            counts.append(sum(len(loop_slot(page, sift, rng)) for page in slot_pages))

        times = alternate(rounds, loop=loop, ours=ours)
        # The first count is that of the warm-up.
        rates = {
            name: [n / seconds for n, seconds in zip(counts[name][1:], side.cpu)]
            for name, side in times.items()
        }
        for name, values in rates.items():
            report.add(f"{case}: {name}", values, "patches/s of a core")
        ratios = [ours / loop for ours, loop in zip(rates["ours"], rates["loop"])]
        report.add(f"{case}: ours / loop", ratios, "times", ">= 1.3")
    report.write()


if __name__ == "__main__":
    main()
