"""What Segment Anything costs a page: operations of each size, seconds and memory of one.

    python -m benchmarks.sam [--size vit_b] [--points 8] [--rounds 3] [--memory]

Random weights on a synthetic page of 2000 x 1500 pixels, worked on at 1024 pixels. Prints the
operations of the image encoder and of decoding all points for every size (by formula: the compiler
counts the body of a loop once), then seconds of

  encoder   one image through the image encoder
  points    the grid of points decoded, measured and selected from, of an embedding that is there
  page      the backend `sam` from pixels to mask: edges, resizing, both of the above, the rules

With `--memory` also the peak memory of each, in a process of its own.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.measure import Report, alternate, peak_memory
from saghog_jax.configs.regions import sam_config
from saghog_jax.devices.precision import operand_dtype
from saghog_jax.input_pipeline.datasets import synthetic
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.sam.backend import FlaxSegmenter, find
from saghog_jax.sam.mask_generator import MaskGenerator, shrink
from saghog_jax.sam.model import SIZES, SamSizes, parameter_shapes

# Tokens of a prompt of one point: IoU, four masks, the point, and the point that is none.
PROMPT_TOKENS = 7


def encoder_flops(sizes: SamSizes) -> int:
    """Floating-point operations of the products of the image encoder, a multiply-add is two."""
    d, grid, features = sizes.width, sizes.grid, sizes.features
    tokens = grid**2
    total = tokens * 3 * sizes.token_size**2 * d
    for block in range(sizes.depth):
        side = grid if block in sizes.global_blocks else sizes.window
        # Windows at the border are filled up.
        filled = (-(-grid // side) * side) ** 2
        total += 4 * filled * d * d  # Queries, keys, values and projection.
        total += 2 * filled * side**2 * d + 2 * filled * side * d  # Attention, relative positions.
        total += 2 * tokens * d * sizes.mlp_ratio * d
    total += tokens * d * features + 9 * tokens * features**2
    return 2 * total


def decoder_flops(sizes: SamSizes, batches: list[int]) -> int:
    """Operations of decoding points in batches of these sizes; what a batch shares counts once."""
    d, inner, t = sizes.features, sizes.decoder_inner, PROMPT_TOKENS
    pixels = sizes.grid**2
    keys_values = 2 * pixels * d * inner
    total = 0
    for points in batches:
        for layer in range(sizes.decoder_depth + 1):
            image = points if layer else 1
            # The tokens attend to the image; in all but the last layer the image to them as well.
            total += image * keys_values + points * (2 * t * d * inner + 2 * t * pixels * inner)
            if layer == sizes.decoder_depth:
                continue
            total += points * (4 * t * d * d + 2 * t * t * d + 2 * t * d * sizes.decoder_hidden)
            total += image * pixels * d * inner
            total += points * (2 * t * d * inner + 2 * t * pixels * inner + pixels * inner * d)
        masks = sizes.masks + 1
        upscaling = pixels * d * d + 4 * pixels * (d // 4) * (4 * d // 8)
        networks = masks * (2 * d * d + d * d // 8)
        hidden = sizes.iou_hidden
        iou = d * hidden + (sizes.iou_depth - 2) * hidden**2 + hidden * masks
        drawing = masks * 16 * pixels * d // 8
        total += points * (upscaling + networks + iou + drawing)
    return 2 * total


def random_weights(sizes: SamSizes) -> dict:
    """Small random parameters under our paths, float32."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)

    return jax.tree.map(draw, parameter_shapes(sizes))


def make_parts(size: str, points: int, batch: int, number: str) -> dict[str, Callable[[], object]]:
    """The three measured parts as functions that return when their work is done."""
    segmenter = FlaxSegmenter(random_weights(SIZES[size]), SIZES[size], operand_dtype(number))
    section = sam_config()
    # Open, as random weights predict nothing good; what is done does not depend on them.
    rules = {"min_iou": -1e3, "min_stability": 0.0, "max_overlap": 0.01}
    generator = MaskGenerator(segmenter, points, batch, **rules, max_masks=section.max_masks)
    page = _page()
    frame = shrink(page, segmenter.image_size)
    embedding = segmenter.encode(frame)
    return {
        "encoder": lambda: jax.block_until_ready(segmenter.encode(frame)),
        "points": lambda: generator.masks(embedding, frame.shape[:2]),
        "page": lambda: find(page, generator, section),
    }


def make_part(part: str, *arguments: object) -> Callable[[], object]:
    """One part, compiled."""
    function = make_parts(*arguments)[part]
    function()
    return function


def _page() -> np.ndarray:
    corpus = synthetic.Corpus(
        train_writers=1, test_writers=0, pages=1, width=2000, height=1500, lines=20
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_csv(synthetic.ensure(Path(folder), corpus))
        return load_page(manifest.root / manifest.pages[0].path, None, 10**8)


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description="Segment Anything benchmark")
    parser.add_argument("--size", default="vit_b", choices=sorted(SIZES))
    parser.add_argument("--points", type=int, default=8, help="rows and columns of the grid")
    parser.add_argument("--batch", type=int, default=16, help="points at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed"))
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    args = parser.parse_args()
    report = Report(f"sam-{args.size}-{args.precision}")
    batches = [args.batch] * -(-(args.points**2) // args.batch)
    for name, sizes in SIZES.items():
        report.add(f"{name} encoder", encoder_flops(sizes) / 1e12, "TFLOP a page")
        report.add(f"{name} points", decoder_flops(sizes, batches) / 1e12, "TFLOP a page")
    arguments = (args.size, args.points, args.batch, args.precision)
    times = alternate(args.rounds, **make_parts(*arguments))
    for part, found in times.items():
        report.add(f"{args.size} {part}", found.wall, "s")
        report.add(f"{args.size} {part}, all threads", found.cpu, "CPU s")
    for part in times if args.memory else ():
        peak = peak_memory(make_part, part, *arguments)
        report.add(f"{args.size} {part}, peak memory", peak.peak, "MiB")
        report.add(f"{args.size} {part}, before it", peak.before, "MiB")
    report.write()


if __name__ == "__main__":
    main()
