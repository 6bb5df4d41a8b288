"""Batches for pretraining, cut on the fly from pages, in advance, by threads or processes."""

import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.batches.crops import Cutter, Recipe, Slot
from saghog_jax.input_pipeline.batches.loader import Batches
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.processes.servers import Servers
from saghog_jax.input_pipeline.processes.workers import one_thread, usable_cores
from saghog_jax.input_pipeline.regions.masks import open_masks

logger = logging.getLogger(__name__)


class PageCrops:
    """Pages as a source of batches, in place of a patch store.

    The global batch of step i consists of the slots i * p, ..., i * p + p - 1 of `crops.Cutter`,
    where p is global_batch_size / crops.patches_per_page. So it is a pure function of (config,
    seed, step).

    cut: number of slots so far.
    short: number of crops so far that gave too few patches, so that other crops filled the slot.
    """

    def __init__(
        self,
        recipe: Recipe,
        global_batch_size: int,
        total_steps: int,
        log: Callable[[str], None] = logger.info,
    ) -> None:
        """Use `open_crops`.

        Raises:
          UserError: the batch is not a whole number of pages.
        """
        if global_batch_size < 1 or global_batch_size % recipe.patches:
            raise UserError(
                f"a batch of {global_batch_size} is not a whole number of pages with "
                f"{recipe.patches} patches each; change --config.global_batch_size or "
                "--config.crops.patches_per_page"
            )
        self.short = 0
        self.cut = 0
        self._recipe = recipe
        self._pages = global_batch_size // recipe.patches
        self._total_steps = total_steps
        self._log = log
        self._unreadable: dict[int, str] = {}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Pages so far that could not be read, as (page_id, reason)."""
        pages = self._recipe.manifest.pages
        return [(pages[row].page_id, reason) for row, reason in sorted(self._unreadable.items())]

    def batches(
        self, start_step: int, process_index: int, process_count: int, loader: ConfigDict
    ) -> Batches:
        """This process's rows of the batches from `start_step` on.

        Args:
          loader: `threads` and `prefetch` as in loader.batches; `workers`, the number of processes
            that cut (0: one per core, 1: threads of this process cut); `cache_mb`, MB of decoded
            pages in the caches of all these processes together. No field changes a batch.

        Returns:
          an iterator (with `close()`, and a context manager) of `patches` uint8 [b, s, s, 3] and
          `ink` uint8 [b, s*s/8]; b is the local batch size.

        Raises:
          UserError: the number of pages of a batch is not a multiple of the number of processes.
        """
        # Imported here because grain imports jax, which processes that cut must not import. So
        # grain reads in threads of this process, and these threads call processes without grain.
        import grain

        if not 0 <= start_step <= self._total_steps:
            raise ValueError(f"start_step {start_step} is not in [0, {self._total_steps}]")
        if self._pages % process_count:
            raise UserError(
                f"the {self._pages} pages of a batch cannot be shared out evenly among "
                f"{process_count} processes; change --config.global_batch_size"
            )
        local = self._pages // process_count
        first = process_index * local
        steps = grain.MapDataset.range(self._total_steps)[start_step:]
        cutting = _Cutting(self._recipe, loader)

        def read(step: int) -> list[Slot]:
            slot = step * self._pages + first
            return cutting.cut(range(slot, slot + local))

        options = grain.ReadOptions(loader.threads, loader.prefetch)
        reader = iter(steps.map(read).to_iter_dataset(options)) if len(steps) else None
        return Batches(_Reading(reader, cutting, self))

    def join(self, slots: list[Slot]) -> dict[str, np.ndarray]:
        """Concatenates slots into a batch; counts and logs skipped pages and short crops."""
        self.cut += len(slots)
        self.short += sum(slot.short for slot in slots)
        for row, reason in (pair for slot in slots for pair in slot.unreadable):
            if row not in self._unreadable:
                self._unreadable[row] = reason
                self._log(f"skipped {self._recipe.manifest.pages[row].page_id!r}: {reason}")
        return {
            "patches": np.concatenate([slot.patches for slot in slots]),
            "ink": np.concatenate([slot.ink for slot in slots]),
        }

    def log_short(self) -> None:
        """Logs the number of crops with too few patches, if there were any."""
        if self.short:
            self._log(
                f"{self.cut:,} slots were cut; {self.short:,} crops gave fewer than "
                f"{self._recipe.patches} patches and were completed from the next pages"
            )


class _Cutting:
    """The threads, and optionally processes, that cut slots."""

    def __init__(self, recipe: Recipe, loader: ConfigDict) -> None:
        self._closing = ExitStack()
        workers = loader.workers or usable_cores()
        cache_bytes = int(loader.cache_mb * 1e6)
        if workers > 1:
            servers = Servers(Cutter, (recipe, cache_bytes // workers), workers)
            self._closing.callback(servers.close)
            self._cut, threads = servers.call, workers
        else:
            # OpenCV would start further threads in each of these threads.
            self._closing.enter_context(one_thread())
            self._cut, threads = Cutter(recipe, cache_bytes), loader.threads
        self._pool = ThreadPoolExecutor(threads) if threads else None

    def cut(self, slots: range) -> list[Slot]:
        """The slots, in order."""
        return list((self._pool.map if self._pool else map)(self._cut, slots))

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._closing.close()


class _Reading:
    """Iterator over batches; `reader` is None if there is no batch left."""

    def __init__(self, reader: Iterator[list[Slot]] | None, cutting: _Cutting, source: PageCrops):
        self._reader, self._cutting, self._source = reader, cutting, source

    def __next__(self) -> dict[str, np.ndarray]:
        if self._reader is None:
            raise StopIteration
        return self._source.join(next(self._reader))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._cutting.close()
        self._source.log_short()


def open_crops(
    config: ConfigDict,
    log: Callable[[str], None] = logger.info,
    leave_out: Collection[str] = (),
) -> PageCrops:
    """The pages of a pretraining config as a source of batches.

    Args:
      config: of configs/pretrain.py.
      log: called with one line at a time.
      leave_out: ids of pages from which no patch is cut.

    Raises:
      UserError: the pages cannot be listed, or a field is out of its range.
    """
    manifest = load_manifest(config.data)
    pages = tuple(page for page in manifest.pages if page.page_id not in leave_out)
    manifest = replace(manifest, pages=pages)
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    page_masks = masks.ensure(log) if masks else None
    recipe = Recipe.from_config(
        manifest, config.data, config.store, config.crops, config.seed, page_masks
    )
    return PageCrops(recipe, config.global_batch_size, config.total_steps, log)
