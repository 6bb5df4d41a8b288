"""Dry run of a build: reads every page once, cuts a sample of the pages, and reports the result."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.regions.masks import RegionMasks
from saghog_jax.input_pipeline.regions.page_check import checked_page, note_inverted
from saghog_jax.input_pipeline.regions.page_mask import MaskJob, PageMask, preview
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.page_views import cut_views
from saghog_jax.input_pipeline.store.strokes import BEST, best_scale, median_of, page_stroke
from saghog_jax.input_pipeline.store.writer import record_type

# Rows, writers and pages that the report shows.
SHOWN = 5

# Stages that read a store, by its rule.
_PURPOSES = {"pretrain": "pretraining", "offline": "finetuning"}


class SurveyJob(NamedTuple):
    """A page to inspect; it is cut by every rule in `rules`."""

    row: int
    root: Path
    page: Page
    max_pixels: int
    rules: tuple[Rule, ...]
    mask: MaskJob | None


class Finding(NamedTuple):
    """The result for one page.

    row: of the page in the manifest.
    shape: height and width in pixels; None if the page cannot be used.
    reason: why the page cannot be used; empty if it can.
    n_patches: number of patches by each rule; empty if the page was not cut.
    mask_fraction: fraction of the page in its mask, if the page was cut and the mask is known.
    stroke: width of its strokes in pixels after resizing by the first rule, if the page was cut;
      0 without ink.
    inverted: whether the page has light writing on dark ground and would be inverted.
    """

    row: int
    shape: tuple[int, int] | None
    reason: str
    n_patches: tuple[int, ...]
    mask_fraction: float | None = None
    stroke: float | None = None
    inverted: bool = False


def inspect_page(job: SurveyJob) -> Finding:
    """Reads a page as the build would, and cuts it by the rules of the job."""
    try:
        image = load_page(job.root / job.page.path, job.page.box, job.max_pixels)
        image, inverted = checked_page(image, job.page.polarity)
        mask = preview(job.mask) if job.mask else None
        if isinstance(mask, PageMask):
            return Finding(job.row, None, f"{mask.status}: {mask.reason}", ())
        counts = []
        for rule in job.rules:
            factors = [rule.scale * job.page.scale]
            (cut,) = cut_views(image, mask, rule, factors, [job.row], job.max_pixels)
            if isinstance(cut, PageError):
                raise cut
            counts.append(len(cut.patches))
        fraction = None if mask is None else float(mask.mean())
        stroke = None
        if job.rules:
            rule = job.rules[0]
            factor = rule.scale * job.page.scale
            stroke = page_stroke(image, rule.grey, rule.binarization) * factor
        return Finding(job.row, image.shape[:2], "", tuple(counts), fraction, stroke, inverted)
    except PageError as error:
        return Finding(job.row, None, " ".join(str(error).split()), ())


def survey(
    manifest: Manifest,
    rules: Sequence[Rule],
    max_pixels: int,
    samples: int,
    workers: int,
    masks: RegionMasks | None = None,
) -> list[Finding]:
    """Reads all pages and cuts `samples` of them, evenly spaced.

    Args:
      workers: processes; 0: one per core.
      masks: handwriting is detected on the sample pages with these settings; nothing is written.

    Returns:
      one result per page, in the manifest's order.
    """
    sample = set(evenly(len(manifest), samples).tolist())
    jobs = [
        SurveyJob(
            row,
            manifest.root,
            page,
            max_pixels,
            tuple(rules) if row in sample else (),
            masks.job(row) if masks and row in sample else None,
        )
        for row, page in enumerate(manifest.pages)
    ]
    return sorted(run_jobs(inspect_page, jobs, min(workers or usable_cores(), len(jobs))))


def patch_bytes(rule: Rule) -> int:
    """Bytes of one patch in a store."""
    keys = ("patches", "ink", "page", "x", "y") + ("descriptors",) * rule.descriptors
    types = [record_type(key, rule.patch_size) for key in keys]
    return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in types)


def describe(manifest: Manifest, rules: Sequence[Rule], findings: Sequence[Finding]) -> list[str]:
    """The report on a survey, as lines of text."""
    return [
        *_describe_pages(manifest),
        *_describe_files(manifest, findings),
        *_describe_regions(findings),
        *_describe_strokes(rules[0].scale, findings),
        *(_describe_store(i, rule, findings) for i, rule in enumerate(rules)),
        "each stage chooses its patches by its own rule, and `embed` at each of its scales: "
        "their numbers differ (docs/odd-pages.md)",
    ]


def _describe_pages(manifest: Manifest) -> Iterator[str]:
    yield f"{len(manifest):,} pages below {manifest.root}"
    columns = ", ".join(manifest.columns)
    if columns:
        yield f"further columns: {columns}"
    splits = Counter(page.split for page in manifest.pages)
    if set(splits) != {""}:
        yield "splits: " + ", ".join(f"{s or '(none)'} {n:,}" for s, n in sorted(splits.items()))
    writers = Counter(page.writer for page in manifest.pages)
    unknown = writers.pop("", 0)
    if writers:
        counts = np.array(list(writers.values()))
        yield (
            f"{len(writers):,} writers with {counts.min()} to {counts.max()} pages "
            f"(median {np.median(counts):g}), {(counts == 1).sum():,} of them with one page only: "
            + ", ".join(f"{w} {n}" for w, n in sorted(writers.items())[:SHOWN])
            + (", ..." if len(writers) > SHOWN else "")
        )
    if unknown:
        yield f"{unknown:,} pages without a writer"
    yield "first pages (path, writer, page, split, box, further columns):"
    for page in manifest.pages[:SHOWN]:
        row = (*page[:4], page.box or "", *page.extra.values())
        yield "  " + _one_line(", ".join(map(str, row)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _describe_files(manifest: Manifest, findings: Sequence[Finding]) -> Iterator[str]:
    shapes = np.array([f.shape for f in findings if f.shape is not None])
    if len(shapes):
        areas = np.argsort(shapes.prod(axis=1), kind="stable")
        smallest, median, largest = (
            "{1} x {0}".format(*shapes[areas[i]]) for i in (0, len(areas) // 2, -1)
        )
        yield f"sizes in pixels: smallest {smallest}, median {median}, largest {largest}"
    unreadable = [f for f in findings if f.shape is None]
    yield f"{len(unreadable):,} pages would be skipped" + (":" if unreadable else "")
    for finding in unreadable:
        yield f"  {_one_line(manifest.pages[finding.row].page_id)}: {finding.reason}"
    lines: list[str] = []
    note_inverted([manifest.pages[f.row].page_id for f in findings if f.inverted], lines.append)
    yield from lines


def _describe_regions(findings: Sequence[Finding]) -> Iterator[str]:
    fractions = [f.mask_fraction for f in findings if f.mask_fraction is not None]
    if fractions:
        yield (
            f"handwriting covers {min(fractions):.0%} to {max(fractions):.0%} of a sample page "
            f"(median {np.median(fractions):.0%}); configs/regions.py shows where"
        )


def median_width(findings: Sequence[Finding]) -> float:
    """Median width of the strokes in pixels; 0 where no page has strokes."""
    return median_of([finding.stroke or 0.0 for finding in findings])


def _describe_strokes(scale: float, findings: Sequence[Finding]) -> Iterator[str]:
    width = median_width(findings)
    if not width:
        return
    text = f"strokes are {width:.1f} pixels wide (median of the sample pages)"
    better = best_scale(width, scale)
    if better != scale:
        text += (
            f"; the recipe `small` works best with {BEST[0]} to {BEST[1]}: start pretrain, "
            f"finetune and embed with --config.store.scale={better:g}"
        )
    yield text


def _purpose(rule: Rule) -> str:
    purpose = _PURPOSES.get(rule.rule)
    return f" for {purpose} (store {rule.rule})" if purpose else f" (store {rule.rule})"


def _describe_store(i: int, rule: Rule, findings: Sequence[Finding]) -> str:
    counts = np.array([f.n_patches[i] for f in findings if f.n_patches])
    readable = sum(f.shape is not None for f in findings)
    each = patch_bytes(rule)
    if not len(counts):
        return f"patches{_purpose(rule)}: no page could be cut"
    patches = counts.mean() * readable
    text = (
        f"patches{_purpose(rule)}: about {patches:,.0f}, {patches * each / 1e6:,.0f} MB, "
        f"estimated from {len(counts)} sample pages with {counts.min():,} to {counts.max():,}"
    )
    if rule.max_patches_per_page != -1:
        most = rule.max_patches_per_page * readable * each
        text += f"; at most {most / 1e6:,.0f} MB ({rule.max_patches_per_page:,} patches per page)"
    empty = int((counts == 0).sum())
    return text + (f"; {empty} of the sample pages gave no patch" if empty else "")
