"""Masks of pages on disk: computed once, then reused whenever patches are cut.

    FOLDER/                       named after the digest of backend.json
      backend.json                backend, version, parameters, SHA-256 of its weights
      NAME-DIGEST.png             1 bit per pixel, white on handwriting, the size of the page
      NAME-DIGEST.json            written last: page, backend, scores, numbers of keypoints

DIGEST is over the contents of the page's file, its box and polarity, and the contents of the file
that the mask was read from, if there is one. So masks survive a killed run, serve every manifest
with the same page, and are never used for an edited page. Failed pages leave no files and are tried
again. The image itself is never changed.
"""

import hashlib
import itertools
import json
import logging
import os
import posixpath
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page, shared_names
from saghog_jax.input_pipeline.processes.beam import run_beam_jobs
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions import keypoint_filter, page_check, source_notes
from saghog_jax.input_pipeline.regions.backends import Backend, make_backend
from saghog_jax.input_pipeline.regions.page_mask import (
    OK,
    MaskJob,
    PageMask,
    load,
    make_loaded,
    make_mask,
    one_line,
    read_result,
    write_json,
)

logger = logging.getLogger(__name__)

# Increased whenever the layout of the folder changes.
FORMAT_VERSION = 1

# Pages that are decoded while the device processes another page.
_AHEAD = 2
# Failed pages that a summary names.
_NAMED = 5


class RegionMasks:
    """The masks of the pages of a manifest; `ensure` computes missing masks."""

    def __init__(
        self,
        manifest: Manifest,
        max_pixels: int,
        regions: ConfigDict,
        backend: Backend,
    ) -> None:
        """Use `open_masks`."""
        keypoint_filter.check(regions)
        self.manifest = manifest
        self.identity = {
            **backend.identity,
            "min_keypoints": regions.min_keypoints,
            "keypoints_on": regions.keypoints_on,
            "keypoints_side": regions.keypoints_side,
        }
        self._regions, self._backend, self._max_pixels = regions, backend, max_pixels
        root = Path(regions.root)
        text = json.dumps([FORMAT_VERSION, page_check.VERSION, backend.identity], sort_keys=True)
        self.folder = root / f"{backend.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        files = sorted({page.path for page in manifest.pages})
        self._sources: dict[str, Path | None] = dict.fromkeys(files)
        if backend.source is not None:
            namesakes = manifest.namesakes | shared_names(manifest.pages)
            self._sources = {path: backend.source(manifest.root, path, namesakes) for path in files}
        sources = {os.path.abspath(s) for s in self._sources.values() if s is not None}
        contents = manifest.contents()
        contents_of_source = fingerprints(manifest.root, sources, manifest.contents_cache)
        self.digests = [
            _digest(
                contents[page.path],
                page,
                contents_of_source.get(os.path.abspath(self._sources[page.path] or ""), ""),
            )
            for page in manifest.pages
        ]

    def job(self, row: int) -> MaskJob:
        """The job that computes the mask of the page in this row."""
        page = self.manifest.pages[row]
        stem = posixpath.splitext(posixpath.basename(page.path))[0]
        return MaskJob(
            f"{stem[:40]}-{self.digests[row][:16]}", row, self.manifest.root, page,
            self._sources[page.path], self.folder, self._regions, self._max_pixels,
        )  # fmt: skip

    def ensure(self, log: Callable[[str], None] = logger.info, beam: str = "") -> list[PageMask]:
        """Computes the missing masks.

        Args:
          log: called with one line at a time.
          beam: options of Apache Beam, which then runs backends on the host; empty: a pool of
            processes.

        Returns:
          the result for each page, in the manifest's order.

        Raises:
          UserError: a mask cannot be written, or a worker was killed; finished masks are kept.
        """
        self._start_folder()
        masks: dict[int, PageMask] = {}
        jobs = []
        for row in range(len(self.manifest)):
            job = self.job(row)
            known = read_result(job)
            if known is None:
                jobs.append(job)
            else:
                masks[row] = known
        if jobs:
            log(
                f"regions: looking for handwriting on {len(jobs):,} of "
                f"{len(self.manifest):,} pages by {self._backend.name}, into {self.folder}"
            )
            # In random order, so that several processes that share the folder share the work.
            random.SystemRandom().shuffle(jobs)
            self._make(jobs, masks, log, beam)
        ordered = [masks[row] for row in range(len(self.manifest))]
        _summarise(ordered, self.manifest, log)
        if self._backend.source is not None:
            source_notes.summarise(ordered, self.manifest, log)
        return ordered

    def _start_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "backend.json", self._backend.identity)
        except OSError as error:
            raise UserError(f"cannot write in {self.folder}: {error.strerror}") from None

    def _make(
        self,
        jobs: Sequence[MaskJob],
        masks: dict[int, PageMask],
        log: Callable[[str], None],
        beam: str,
    ) -> None:
        """Runs the jobs and adds their results to `masks`."""
        timer = ProgressTimer(len(jobs))
        for done, (row, mask) in enumerate(self._run(jobs, beam), start=1):
            masks[row] = mask
            if progress := timer.due(done):
                log(
                    f"regions: {done:,} of {len(jobs):,} pages, about "
                    f"{duration(progress.remaining)} left"
                )

    def _run(self, jobs: Sequence[MaskJob], beam: str) -> Iterator[tuple[int, PageMask]]:
        if self._backend.on_device:
            return segment_pages(jobs, self._backend)
        workers = self._regions.workers or usable_cores()
        known = []
        if beam:
            # Results stay on Beam's workers. Pages without a mask run again here, for the reason.
            done = [(job, read_result(job)) for job in run_beam_jobs(make_mask, jobs, beam)]
            known = [(job.row, mask) for job, mask in done if mask is not None]
            jobs = [job for job, mask in done if mask is None]
        return itertools.chain(known, run_jobs(make_mask, jobs, min(workers, len(jobs))))


def open_masks(manifest: Manifest, max_pixels: int, regions: ConfigDict) -> RegionMasks | None:
    """The masks of these pages; None if the backend is `none`.

    Args:
      manifest: the pages.
      max_pixels: see `images.load_page`.
      regions: `regions_config` of configs/regions.py.

    Raises:
      UserError: a field of `regions` is wrong.
    """
    backend = make_backend(regions)
    if backend is None:
        if regions.get("min_keypoints", 0):
            raise UserError(
                f"regions.min_keypoints={regions.min_keypoints} counts keypoints in regions; "
                "choose a regions.backend other than 'none'"
            )
        return None
    return RegionMasks(manifest, max_pixels, regions, backend)


def segment_pages(jobs: Sequence[MaskJob], backend: Backend) -> Iterator[tuple[int, PageMask]]:
    """Computes masks in this process, page after page, while threads decode the next pages."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        pages = [pool.submit(load, job) for job in jobs[:_AHEAD]]
        for i, job in enumerate(jobs):
            if i + _AHEAD < len(jobs):
                pages.append(pool.submit(load, jobs[i + _AHEAD]))
            loaded, pages[i] = pages[i].result(), None
            yield job.row, make_loaded(job, backend, loaded)


def _digest(content: str, page: Page, source: str) -> str:
    decides = [content, page.box, page.polarity, source]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _summarise(masks: Sequence[PageMask], manifest: Manifest, log: Callable[[str], None]) -> None:
    counts = Counter(mask.status for mask in masks)
    log("regions: " + ", ".join(f"{counts[status]:,} pages {status}" for status in counts))
    failed = [pair for pair in zip(manifest.pages, masks, strict=True) if pair[1].status != OK]
    for page, mask in failed[:_NAMED]:
        log(f"  {one_line(page.page_id)}: {mask.status}: {mask.reason}")
    if len(failed) > _NAMED:
        log(f"  and {len(failed) - _NAMED:,} more")
    inverted = [mask.reason == page_check.INVERTED for mask in masks]
    page_check.note_inverted(
        [page.page_id for page, yes in zip(manifest.pages, inverted, strict=True) if yes], log
    )
