"""What cutting whole pages into patches costs beyond binarisation and SIFT.

    python -m benchmarks.extraction [--pages 8] [--rounds 7] [--rule pretrain] [--folder FOLDER]

Synthetic pages of 2000 x 1500 pixels, decoded ahead, on one thread, with memory kept as worker
processes keep it. Three ways of the same pages, alternately:

  alone  grey conversion, binarisation and SIFT (with descriptors where the rule keeps them)
  ours   `patches.cut_page`, by the rule with at most 1,000 patches a page, and with all patches
  loop   as the published samplers do it: Pillow cuts a window at every keypoint, numpy counts its
         ink, and the patches that are kept are stacked; for rules that go by ink only

CPU seconds a page, and the ratio of each to `alone` round by round.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.measure import Report, alternate
from saghog_jax.configs import common
from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.cutting.patches import Rule, cut_page
from saghog_jax.input_pipeline.cutting.rules import RULES
from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.processes.workers import keep_memory, keep_to_one_thread


def alone(page: np.ndarray, rule: Rule) -> tuple[np.ndarray, list]:
    """The ink mask and the keypoints of a page."""
    grey = to_grey(page, rule.grey)
    ink = ink_mask(grey, rule.binarization)
    sift = cv2.SIFT_create(sigma=rule.sift_sigma)
    found = sift.detect((1 - ink) * 255 if rule.detect_on == "binary" else grey, None)
    if rule.descriptors:
        sift.compute(grey, found)
    return ink, found


def loop(page: np.ndarray, rule: Rule) -> int:
    """Patches of a page, one keypoint after the other."""
    ink, found = alone(page, rule)
    points = np.unique(np.array([point.pt for point in found]).astype(int), axis=0)
    image, mask = Image.fromarray(page), Image.fromarray((1 - ink) * 255)
    half = rule.patch_size // 2
    kept = []
    for x, y in points:
        box = (x - half, y - half, x + half, y + half)
        binary = np.array(mask.crop(box))
        share = np.sum(binary == 0) / binary.size
        if rule.keypoint_on_ink and not ink[y, x]:
            continue
        if rule.min_ink <= share <= rule.max_ink:
            kept.append((np.array(image.crop(box)), binary))
    return len(np.stack([patch for patch, _ in kept]))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rule", default="pretrain", choices=RULES)
    parser.add_argument("--folder", default=None, help="for the pages; kept if given")
    args = parser.parse_args()
    keep_to_one_thread()
    keep_memory()
    corpus = synthetic.Corpus(
        train_writers=args.pages, test_writers=0, pages=1, width=2000, height=1500, lines=20
    )
    with tempfile.TemporaryDirectory() as temporary:
        manifest = read_csv(synthetic.ensure(Path(args.folder or temporary), corpus))
        pages = [load_page(manifest.root / page.path, page.box, 10**8) for page in manifest.pages]
    rule = Rule.from_config(common.store_config(args.rule))
    every = replace(rule, max_patches_per_page=-1)
    counts = [len(cut_page(page, every).x) for page in pages]
    most = f"ours, at most {rule.max_patches_per_page}"
    sides = {
        "alone": lambda page: alone(page, rule),
        most: lambda page: cut_page(page, rule),
        "ours, all": lambda page: cut_page(page, every),
    }
    if rule.keep == "ink" and rule.border != "drop":
        sides["loop, all"] = lambda page: loop(page, rule)

    def through(side: Callable) -> Callable[[], None]:
        return lambda: [side(page) for page in pages]

    report = Report(f"extraction-{args.rule}")
    report.add("patches a page", counts, "patches")
    times = alternate(args.rounds, **{name: through(side) for name, side in sides.items()})
    for name, side in times.items():
        report.add(name, [seconds / len(pages) for seconds in side.cpu], "CPU s a page")
    for name, side in times.items():
        if name != "alone":
            target = "<= 1.2" if name == most else ""
            report.ratio(f"{name} / alone", side, times["alone"], target, by="cpu")
    report.write()


if __name__ == "__main__":
    main()
