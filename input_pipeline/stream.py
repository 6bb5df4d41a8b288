"""Pages cut on the fly, in order, by several processes: for what needs each patch only once."""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from input_pipeline.errors import PageError
from input_pipeline.images import load_page
from input_pipeline.manifest import Page
from input_pipeline.patches import Cut, Rule, cut_page
from input_pipeline.workers import hidden_main, one_thread, start_worker, usable_cores

# Pages a process may be ahead of the reader.
_AHEAD = 2


def cut_or_reason(root: Path, page: Page, rule: Rule, max_pixels: int, row: int) -> Cut | str:
    """The patches of a page (perhaps none), or why it cannot be read."""
    try:
        image = load_page(root / page.path, page.box, max_pixels, rule.scale)
        return cut_page(image, rule, page_seed=row)
    except PageError as error:
        return " ".join(str(error).split())


def stream_cuts(
    root: Path, pages: Sequence[Page], rule: Rule, max_pixels: int, workers: int
) -> Iterator[Cut | str]:
    """What `cut_or_reason` says of each page, in order.

    Args:
      workers: processes; 0 takes one a core, 1 works in this process.
    """
    workers = min(workers or usable_cores(), max(len(pages), 1))
    if workers == 1:
        for row, page in enumerate(pages):
            with one_thread():
                cut = cut_or_reason(root, page, rule, max_pixels, row)
            yield cut
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    waiting: deque[Future] = deque()
    try:
        for row, page in enumerate(pages):
            with hidden_main():
                waiting.append(pool.submit(cut_or_reason, root, page, rule, max_pixels, row))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
