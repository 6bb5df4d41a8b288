"""Cuts pages on the fly, in order, in several processes, for stages that use a patch only once."""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.input_pipeline.processes.workers import (
    hidden_main,
    one_thread,
    start_worker,
    usable_cores,
)
from saghog_jax.input_pipeline.regions.page_mask import PageMask, one_line
from saghog_jax.input_pipeline.store.page_views import open_cuts

# Pages that each process may be ahead of the reader.
_AHEAD = 2


class PageCuts(list[Cut | str]):
    """The patches of a page at each scale, or the reason why it cannot be used at that scale.

    inverted: whether the page has light writing on dark ground and was inverted.
    """

    inverted: bool = False


def cut_at_scales(
    root: Path,
    page: Page,
    rule: Rule,
    max_pixels: int,
    row: int,
    page_mask: PageMask | None = None,
    scales: Sequence[float] = (1.0,),
    colours: bool = True,
) -> PageCuts:
    """The patches of a page at each scale (possibly none), or the reason why it cannot be used.

    Args:
      row: row of the page in its manifest; seeds the random choice of patches.
      scales: factors, multiplied by those of the rule and the page. The page is decoded once.
      colours: see `page_views.cut_views`.
    """
    factors = [rule.scale * (page.scale * scale) for scale in scales]
    seeds = [row * len(scales) + j for j in range(len(scales))]
    opened = open_cuts(root, page, rule, factors, seeds, max_pixels, page_mask, colours)
    cuts = PageCuts(one_line(c) if isinstance(c, PageError) else c for c in opened.cuts)
    cuts.inverted = opened.inverted
    return cuts


def stream_cuts(
    root: Path,
    pages: Sequence[Page],
    rule: Rule,
    max_pixels: int,
    workers: int,
    masks: Sequence[PageMask] | None = None,
    rows: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    colours: bool = True,
) -> Iterator[PageCuts]:
    """Yields `cut_at_scales` of each page, in order.

    Args:
      workers: processes; 0: one per core, 1: this process.
      masks: the result of the region backend for each page, if one was used.
      rows: rows of the pages in their manifest, by default 0, 1, ...; they seed the random choice
        of patches.
      colours: see `page_views.cut_views`.
    """
    page_masks = masks or [None] * len(pages)
    rows = range(len(pages)) if rows is None else [int(row) for row in rows]
    jobs = [
        (root, page, rule, max_pixels, row, mask, tuple(scales), colours)
        for row, page, mask in zip(rows, pages, page_masks, strict=True)
    ]
    workers = min(workers or usable_cores(), max(len(pages), 1))
    if workers == 1:
        for job in jobs:
            with one_thread():
                cuts = cut_at_scales(*job)
            yield cuts
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    waiting: deque[Future] = deque()
    try:
        for job in jobs:
            with hidden_main():
                waiting.append(pool.submit(cut_at_scales, *job))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
