"""Builds a patch store from pages: on one core or many, resumable, always with the same bytes.

A store is named after the digest of its inputs: the cutting rule, the shard size, the rows of the
manifest and the contents of the page files. The unit of work is a shard, a fixed group of pages. A
shard is a pure function of its `ShardJob` and gets its name once it is complete. So a killed build
continues where it stopped, and several builders in one folder (the processes of a training job, or
machines on a shared file system) share the work: each builder goes through the missing shards in a
random order. If two builders finish the same shard, the bytes are equal and the first is kept.
"""

import functools
import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import NoWritingError, PageError, UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.processes.beam import run_beam_jobs
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_check import INVERTED, VERSION, note_inverted
from saghog_jax.input_pipeline.regions.page_mask import OK, PageMask, one_line
from saghog_jax.input_pipeline.store.page_views import open_cuts
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.workspace import open_workspace
from saghog_jax.input_pipeline.store.writer import (
    FORMAT_VERSION,
    PageResult,
    assemble_shard,
    finish_store,
    read_shard,
    record_type,
    shard_name,
)

logger = logging.getLogger(__name__)

# Skipped pages that a summary names; the store's manifest.csv lists all of them.
NAMED_SKIPPED = 5


class ShardJob(NamedTuple):
    """All inputs of a shard, and the folder it is written to; sent to the workers."""

    folder: Path
    workspace: Path
    number: int
    first_row: int
    root: Path
    pages: tuple[Page, ...]
    rule: Rule
    max_pixels: int
    masks: tuple[PageMask, ...] | None


def ensure_store(
    data: ConfigDict,
    store: ConfigDict,
    log: Callable[[str], None] = logger.info,
    beam: str = "",
    regions: ConfigDict | None = None,
    tell: bool = True,
) -> Path:
    """Returns the folder of the store of these pages cut by this rule; builds missing shards.

    Args:
      data: `saghog_jax.configs.common.data_config()`.
      store: `saghog_jax.configs.common.store_config()`.
      log: called with one line at a time.
      beam: Apache Beam's pipeline options, see `beam.run_beam_jobs`; empty for a pool of processes.
      regions: the section of configs/regions.py; None is its backend `none`. Missing masks are
        computed first.
      tell: see `load_manifest`.

    Raises:
      UserError: the pages cannot be listed, no page gives a patch, the disk is full, or a worker
        was killed. Finished shards are kept.
    """
    manifest = load_manifest(data, tell)
    rule = Rule.from_config(store)
    masks = None if regions is None else open_masks(manifest, data.max_pixels, regions)
    config = store_identity(rule, store.pages_per_shard, data.max_pixels)
    if masks is not None:
        config["regions"] = masks.identity
    root = Path(store.root)
    digest = store_digest(manifest, config, masks.digests if masks else ())
    folder = root / f"{store.rule}-{digest[:12]}"
    if not (folder / "store.json").exists():
        workers = store.workers or usable_cores()
        page_masks = masks.ensure(log, beam) if masks else None
        _build(folder, manifest, rule, config, digest, workers, beam, log, page_masks)
    return folder


def store_identity(rule: Rule, pages_per_shard: int, max_pixels: int) -> dict[str, object]:
    """The settings that determine the bytes of a store."""
    return {
        **rule.settings(),
        "pages_per_shard": pages_per_shard,
        "max_pixels": max_pixels,
    }


def store_digest(manifest: Manifest, config: dict[str, object], masks: Sequence[str] = ()) -> str:
    """SHA-256 over settings, manifest rows and page contents, but not over paths of pages.

    A store therefore serves the same pages under other file names; its manifest.csv has the names
    that they had when they were cut.

    Args:
      masks: `RegionMasks.digests`, if the pages have masks.
    """
    contents = manifest.contents()
    rows = [
        # A file that cannot be read is no other page; its name keeps it apart.
        [*page[1:5], sorted(page.extra.items()), contents[page.path] or page.path]
        for page in manifest.pages
    ]
    inputs = [FORMAT_VERSION, VERSION, config, manifest.columns, rows, *([masks] if masks else [])]
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def build_shard(job: ShardJob) -> int:
    """Cuts and writes one shard, unless the shard exists already; returns its number.

    Raises:
      UserError: the shard cannot be written.
    """
    return assemble_shard(job, functools.partial(_cut, job))


def _cut(job: ShardJob, row: int, page: Page) -> tuple[PageResult, dict[str, np.ndarray]]:
    """The patches of one page as the arrays of a shard; empty arrays if it gives no patch."""
    page_mask = job.masks[row - job.first_row] if job.masks else None
    if page_mask and page_mask.status != OK:
        return PageResult(0, page_mask.status, page_mask.reason), _no_patches(job.rule)
    try:
        factor = job.rule.scale * page.scale
        opened = open_cuts(job.root, page, job.rule, [factor], [row], job.max_pixels, page_mask)
        (cut,) = opened.cuts
        if isinstance(cut, PageError):
            raise cut
    except NoWritingError as error:
        return PageResult(0, "empty", one_line(error)), _no_patches(job.rule)
    except PageError as error:
        return PageResult(0, "unreadable", one_line(error)), _no_patches(job.rule)
    except Exception as error:
        error.add_note(f"while cutting page {page.page_id}")
        raise
    n = len(cut.patches)
    if n == 0:
        reason = "no patch passed the rule (a blank page?)"
        return PageResult(0, "empty", reason), _no_patches(job.rule)
    arrays = {
        "patches": cut.patches,
        "ink": cut.ink,
        "page": np.full(n, row, np.int32),
        "x": cut.x,
        "y": cut.y,
    }
    if job.rule.descriptors:
        arrays["descriptors"] = cut.descriptors
    return PageResult(n, "ok", INVERTED if opened.inverted else ""), arrays


def _no_patches(rule: Rule) -> dict[str, np.ndarray]:
    keys = ("patches", "ink", "page", "x", "y") + ("descriptors",) * rule.descriptors
    empty = {}
    for key in keys:
        dtype, shape = record_type(key, rule.patch_size)
        empty[key] = np.empty((0, *shape), dtype)
    return empty


def _build(
    folder: Path,
    manifest: Manifest,
    rule: Rule,
    config: dict[str, object],
    digest: str,
    workers: int,
    beam: str,
    log: Callable[[str], None],
    masks: Sequence[PageMask] | None,
) -> None:
    start = time.monotonic()
    with open_workspace(folder) as workspace:
        jobs = _jobs(folder, workspace, manifest, rule, config, masks)
        missing = [
            job for job in jobs if read_shard(folder / "shards" / shard_name(job.number)) is None
        ]
        random.SystemRandom().shuffle(missing)
        ready = len(manifest) - sum(len(job.pages) for job in missing)
        log(
            f"cutting {len(manifest):,} pages into {folder}"
            + (f", {ready:,} of them are done already" if ready else "")
            + (f"; Apache Beam with {beam}" if beam else f"; {workers} processes")
        )
        # Beam reports nothing until all shards are done.
        progress = _Progress(len(manifest), ready, (lambda line: None) if beam else log)
        pages_of = {job.number: len(job.pages) for job in missing}
        try:
            for number in _run(missing, workers, beam):
                progress.add(pages_of[number])
        except UserError as error:
            raise UserError(
                f"{error}; {progress.done:,} of {len(manifest):,} pages are kept, "
                "the same command continues from there"
            ) from None
        try:
            finish_store(folder, workspace, manifest, config, digest)
        except OSError as error:
            raise UserError(
                f"cannot write {folder / 'store.json'}: {error.strerror}; all shards are kept, "
                "the same command finishes the store"
            ) from error
        except UserError:
            # A store without a patch is useless; the next attempt should cut the pages again.
            shutil.rmtree(folder, ignore_errors=True)
            raise
    _summarise(folder, time.monotonic() - start, log)


def _run(jobs: list[ShardJob], workers: int, beam: str) -> Iterator[int]:
    if not beam:
        return run_jobs(build_shard, jobs, min(workers, len(jobs)))
    return (job.number for job in run_beam_jobs(build_shard, jobs, beam))


def _jobs(
    folder: Path,
    workspace: Path,
    manifest: Manifest,
    rule: Rule,
    config: dict[str, object],
    masks: Sequence[PageMask] | None,
) -> list[ShardJob]:
    step = config["pages_per_shard"]
    return [
        ShardJob(
            folder,
            workspace,
            number,
            first,
            manifest.root,
            manifest.pages[first : first + step],
            rule,
            config["max_pixels"],
            None if masks is None else tuple(masks[first : first + step]),
        )
        for number, first in enumerate(range(0, len(manifest), step))
    ]


def _summarise(folder: Path, seconds: float, log: Callable[[str], None]) -> None:
    store = Store.open(folder)
    skipped = store.skipped
    size = sum(f.stat().st_size for f in folder.rglob("*.npy"))
    log(
        f"{len(store.manifest):,} pages gave {len(store):,} patches ({size / 1e6:,.0f} MB) "
        f"in {seconds:.1f} s"
    )
    if skipped:
        named = "; ".join(f"{page}: {reason}" for page, reason in skipped[:NAMED_SKIPPED])
        # File names may hold line breaks.
        named = " ".join(named.split())
        more = len(skipped) - NAMED_SKIPPED
        log(
            f"{len(skipped):,} pages skipped: {named}"
            + (f"; and {more:,} more, all in {folder / 'manifest.csv'}" if more > 0 else "")
        )
    pages = store.manifest.pages
    note_inverted([page.page_id for page in pages if page.extra["reason"] == INVERTED], log)


class _Progress:
    """Reports the progress of a build."""

    def __init__(self, total: int, ready: int, log: Callable[[str], None]) -> None:
        self.done = ready
        self._total, self._ready, self._log = total, ready, log
        self._timer = ProgressTimer(total - ready)

    def add(self, pages: int) -> None:
        self.done += pages
        cut = self.done - self._ready
        if progress := self._timer.due(cut):
            self._log(
                f"{self.done:,} of {self._total:,} pages cut, about "
                f"{duration(progress.remaining)} left"
            )
