"""The width of the strokes of a collection, and the factor that its pages are resized by."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.cutting import binarize
from saghog_jax.input_pipeline.cutting.stroke_width import stroke_width
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.regions.page_check import checked_page
from saghog_jax.input_pipeline.sampling import evenly

# Stroke widths in pixels that were best for `small` (docs/quality.md): lowest and highest. Outside
# of this range pages are resized by the multiple of _STEP that comes nearest to the width _AIM.
BEST, _AIM, _STEP = (4.5, 7.0), 6.0, 0.25


class StrokeJob(NamedTuple):
    """A page whose strokes are measured."""

    path: Path
    page: Page
    max_pixels: int


def page_stroke(image: np.ndarray, grey: str = "pillow", binarization: str = "otsu") -> float:
    """Width of the strokes of a page, uint8 [h, w, 3], in its pixels; 0 without ink."""
    return stroke_width(binarize.ink_mask(binarize.to_grey(image, grey), binarization))


def measure(job: StrokeJob) -> float:
    """Width of the strokes of a page at its own scale; 0 where the page cannot be used."""
    try:
        image = load_page(job.path, job.page.box, job.max_pixels)
        image, _ = checked_page(image, job.page.polarity)
    except PageError:
        return 0.0
    return page_stroke(image) * job.page.scale


def median_stroke(manifest: Manifest, max_pixels: int, samples: int, workers: int) -> float:
    """Median width of the strokes in pixels over evenly chosen pages; 0 where none has strokes.

    Args:
      samples: number of pages that are measured.
      workers: processes; 0: one a core.
    """
    rows = evenly(len(manifest), samples).tolist()
    pages = [manifest.pages[row] for row in rows]
    jobs = [StrokeJob(manifest.root / page.path, page, max_pixels) for page in pages]
    widths = list(run_jobs(measure, jobs, min(workers or usable_cores(), len(jobs))))
    return median_of(widths)


def median_of(widths: list[float]) -> float:
    """Median of the widths above 0; 0 where there is none."""
    widths = [width for width in widths if width]
    return float(np.median(widths)) if widths else 0.0


def best_scale(width: float, scale: float = 1.0) -> float:
    """The factor that suits the recipe `small`, from the width of the strokes.

    Args:
      width: in pixels, of pages resized by `scale`; 0 where it is not known.
      scale: is kept where the strokes are wide enough.
    """
    low, high = BEST
    if not width or low <= width <= high:
        return scale
    return max(1, round(_AIM * scale / width / _STEP)) * _STEP
