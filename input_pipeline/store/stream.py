"""Pages cut on the fly, in order, by several processes: for what needs each patch only once."""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from saghog_jax.input_pipeline.cutting.patches import Cut, Rule, cut_page
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.input_pipeline.processes.workers import (
    hidden_main,
    one_thread,
    start_worker,
    usable_cores,
)
from saghog_jax.input_pipeline.regions.page_mask import PageMask

# Pages a process may be ahead of the reader.
_AHEAD = 2


def cut_or_reason(
    root: Path, page: Page, rule: Rule, max_pixels: int, row: int, found: PageMask | None = None
) -> Cut | str:
    """The patches of a page (perhaps none), or why it cannot be used."""
    if found and found.status != "ok":
        return f"{found.status}: {found.reason}"
    try:
        image = load_page(root / page.path, page.box, max_pixels, rule.scale * page.scale)
        mask = found.read(image.shape[:2]) if found else None
        return cut_page(image, rule, page_seed=row, mask=mask)
    except PageError as error:
        return " ".join(str(error).split())


def stream_cuts(
    root: Path,
    pages: Sequence[Page],
    rule: Rule,
    max_pixels: int,
    workers: int,
    masks: Sequence[PageMask] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Cut | str]:
    """What `cut_or_reason` says of each page, in order.

    Args:
      workers: processes; 0 takes one a core, 1 works in this process.
      masks: what became of each page, where handwriting was looked for.
      rows: of the pages in their manifest, by default 0, 1...; they seed what is drawn of a page.
    """
    found = masks or [None] * len(pages)
    rows = range(len(pages)) if rows is None else [int(row) for row in rows]
    workers = min(workers or usable_cores(), max(len(pages), 1))
    if workers == 1:
        for row, page, mask in zip(rows, pages, found):
            with one_thread():
                cut = cut_or_reason(root, page, rule, max_pixels, row, mask)
            yield cut
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    waiting: deque[Future] = deque()
    try:
        for row, page, mask in zip(rows, pages, found):
            with hidden_main():
                job = (root, page, rule, max_pixels, row, mask)
                waiting.append(pool.submit(cut_or_reason, *job))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
