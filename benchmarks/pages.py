"""From page files to page descriptors: seconds a page and memory, beside classical SIFT-VLAD.

    python -m benchmarks.pages [PAGES] [--scale 2.75] [--rounds 3] [--checkpoint RUN]

PAGES is a folder of scans; without it the built-in corpus. `ours` is the recipe `small`: files are
read, cut in one pass at three scales and described by a model of its size (without --checkpoint one
of two training steps, whose weights cost the same), on all cores. `SIFT-VLAD` is OpenCV's SIFT of
the binarised page at its own size, RootSIFT, 100 words. Both run alternately, on all cores. The
parts of `ours` are CPU seconds of one core. `scan` is the target for the 40 scans of 150 dpi that
this was made for (docs/speed.md).

Writes runs/benchmarks/pages.json.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks import sift_vlad as classical
from benchmarks.measure import FOLDER, Report, cpu_seconds
from saghog_jax.configs import finetune, pretrain
from saghog_jax.embedding.encoder import PageEncoder, filled, load_encoder
from saghog_jax.input_pipeline.cutting import keypoints
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.processes.workers import usable_cores
from saghog_jax.input_pipeline.store import page_views
from saghog_jax.input_pipeline.store.stream import cut_at_scales, stream_cuts
from saghog_jax.stages import run_stage

# Pages whose parts are measured.
_PARTS_OF = 8


class Spent(NamedTuple):
    """Seconds on the clock and of all cores."""

    wall: float
    cpu: float


def measured(work: Callable[[], object]) -> Spent:
    """What a function takes, its child processes included."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Spent(time.perf_counter() - wall, cpu_seconds() - cpu)


def memory() -> tuple[float, float]:
    """The most that this process and the largest of its ended child processes have taken, MiB."""
    own, child = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_maxrss / 1024, child.ru_maxrss / 1024


def make_model(pages: str, folder: Path) -> Path:
    """A model of the recipe `small` after two steps on some pages; its run folder."""
    for stage in (pretrain, finetune):
        config = stage.get_config("small")
        changes = {
            "data.pages": pages,
            "data.split": "",
            "total_steps": 2,
            "store.root": str(folder / "prepare"),
            "tensorboard": False,
        }
        if config.stage == "finetune":
            changes |= {"labels": "page", "checkpoint": str(folder / "pretrain")}
        config.update_from_flattened_dict(changes)
        run_stage(config, folder / config.stage)
    return folder / "finetune"


def cuts_of(manifest: Manifest, encoder: PageEncoder, factor: float) -> Iterator[list[Cut]]:
    """The patches of each page at each scale, by all cores; pages without writing are left out."""
    recipe = encoder.recipe
    scales = [scale * factor for scale in recipe.scales]
    stream = stream_cuts(
        manifest.root,
        manifest.pages,
        recipe.cutting_rule,
        recipe.max_pixels,
        0,
        scales=scales,
        colours=encoder.reads_colours,
    )
    for cuts in stream:
        try:
            yield filled(cuts)
        except PageError as error:
            print(f"left out: {error}")


def embed(manifest: Manifest, encoder: PageEncoder, factor: float) -> np.ndarray:
    """Page descriptors from files."""
    scales, parts = len(encoder.recipe.scales), range(len(encoder.recipe.parts))
    pooled = list(encoder.pool(cut for cuts in cuts_of(manifest, encoder, factor) for cut in cuts))
    return encoder.join(
        [[np.stack([v[part] for v in pooled[j::scales]]) for j in range(scales)] for part in parts]
    )


def vlad(manifest: Manifest, words: np.ndarray) -> np.ndarray:
    """SIFT-VLAD from files."""
    return sift_vlad.page_vectors(classical.described(manifest, usable_cores()), words)


def add_parts(report: Report, manifest: Manifest, encoder: PageEncoder, factor: float) -> None:
    """Adds the CPU seconds a page of cutting, of SIFT in it, and of describing the patches."""
    cv2.setNumThreads(1)
    recipe, inside = encoder.recipe, {"detect": 0.0, "describe": 0.0, "_open": 0.0}

    def timed(module: object, name: str) -> None:
        function = getattr(module, name)

        def call(*args: object, **fields: object) -> object:
            start = time.process_time()
            result = function(*args, **fields)
            inside[name] += time.process_time() - start
            return result

        setattr(module, name, call)

    timed(keypoints, "detect")
    timed(keypoints, "describe")
    timed(page_views, "_open")
    pages = manifest.pages[:_PARTS_OF]
    scales = [scale * factor for scale in recipe.scales]
    start = time.process_time()
    cuts = [
        cut_at_scales(
            manifest.root,
            page,
            recipe.cutting_rule,
            recipe.max_pixels,
            0,
            scales=scales,
            colours=encoder.reads_colours,
        )
        for page in pages
    ]
    cutting = time.process_time() - start
    patches = [cut for page in cuts if not isinstance(page[0], str) for cut in page]
    start = time.process_time()
    list(encoder.pool(iter(patches)))
    describing = time.process_time() - start
    number = len(pages)
    report.add("part: decode and check the page", inside["_open"] / number, "CPU s a page")
    report.add("part: find keypoints", inside["detect"] / number, "CPU s a page")
    report.add("part: describe keypoints", inside["describe"] / number, "CPU s a page")
    report.add("part: cut windows", (cutting - sum(inside.values())) / number, "CPU s a page")
    report.add("part: describe patches", describing / number, "CPU s a page")
    report.add("patches a page", sum(len(cut.x) for cut in patches) / number, "patches")


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="?", default="synthetic", help="a folder of scans")
    parser.add_argument("--scale", type=float, default=1.0, help="by which pages are resized")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", default="", help="run folder of a finetuning")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    config = finetune.get_config("small")
    config.data.pages, config.data.split = args.pages, ""
    manifest = load_manifest(config.data)
    report = Report("pages")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(args.checkpoint or make_model(args.pages, Path(folder)))
        encoder = load_encoder(run)
    factor = args.scale / encoder.recipe.rule.scale
    words = np.asarray(encoder.describers[2].centroids)
    number, spent = len(manifest), {"ours": [], "SIFT-VLAD": []}
    sides = {
        "ours": lambda: embed(manifest, encoder, factor),
        "SIFT-VLAD": lambda: vlad(manifest, words),
    }
    sides["ours"]()
    # Before the other side's processes, which are children too.
    own, child = memory()
    for _ in range(args.rounds):
        for name, side in sides.items():
            spent[name].append(measured(side))
    report.add("pages", number, "pages")
    for name, rounds in spent.items():
        report.add(
            f"{name}",
            [one.wall / number for one in rounds],
            "s a page",
            "<= 1.2" if name == "ours" else "",
        )
        report.add(f"{name}, processor time", [one.cpu / number for one in rounds], "CPU s a page")
    pairs = zip(spent["ours"], spent["SIFT-VLAD"], strict=True)
    report.add("ours to SIFT-VLAD", [a.wall / b.wall for a, b in pairs], "times", "<= 2")
    report.add("memory of the process with the model", own, "MiB", "<= 600")
    report.add("memory of the largest cutting process", child, "MiB", "<= 600")
    add_parts(report, manifest, encoder, factor)
    report.write(args.folder)


if __name__ == "__main__":
    main()
