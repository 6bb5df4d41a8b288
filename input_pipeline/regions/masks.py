"""Masks of pages on disk: made once, kept, and read by whoever cuts patches.

    FOLDER/                       named after the digest of what decides a mask but the page
      backend.json                that: backend, version, parameters, SHA-256 of its weights
      NAME-DIGEST.png             1 bit a pixel, white where handwriting is, the size of the page
      NAME-DIGEST.json            written last: what the mask is of, scores, keypoints counted

DIGEST is of the contents of the page's file (and of the file its mask was looked up in) and of its
box. So masks outlive a killed run, serve any manifest that has the page, and never one that was
edited. Pages that failed leave nothing and are tried again. The image itself is never written to.
"""

import hashlib
import itertools
import json
import os
import posixpath
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.beam import run_beam_jobs
from input_pipeline.errors import PageError, UserError
from input_pipeline.fingerprint import fingerprints
from input_pipeline.images import crop, load_page
from input_pipeline.manifest import Manifest, Page
from input_pipeline.regions import keypoint_filter
from input_pipeline.regions.backends import Backend, Place, make_backend
from input_pipeline.workers import run_jobs, usable_cores

# Raised whenever the layout of the folder changes.
FORMAT_VERSION = 1
FINGERPRINTS = "page_fingerprints.json"
OK, EMPTY, FEW, ERROR, UNREADABLE = "ok", "empty", "too few keypoints", "error", "unreadable"
# Pages that are decoded while the device works on another.
_AHEAD = 2
_LOG_SECONDS = 10.0
# Failed pages that a summary names.
_NAMED = 5


class PageMask(NamedTuple):
    """What became of a page.

    status: `ok`; `empty` (no handwriting found); `too few keypoints` in what was found; `error`
      (the backend cannot judge this page); `unreadable` (the image file is damaged).
    reason: why it is not `ok`.
    file: the mask, where there is one.
    """

    status: str
    reason: str
    file: Path | None

    def read(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask, bool [h, w], scaled to the (scaled) page of this shape.

        Raises:
          PageError: a damaged file.
        """
        mask = read_mask(self.file)
        if mask.shape != shape:
            size = shape[::-1]
            mask = cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        return mask

    def info(self) -> dict[str, Any]:
        """What the file about the mask says, such as `share` and `keypoints`; {} without one."""
        return json.loads(self.file.with_suffix(".json").read_text()) if self.file else {}


class MaskJob(NamedTuple):
    """A page whose mask is wanted; sent to the workers."""

    name: str
    row: int
    root: Path
    page: Page
    source: Path | None
    folder: Path
    regions: ConfigDict
    max_pixels: int


class RegionMasks:
    """The masks of the pages of a manifest, made by `ensure` where they are missing."""

    def __init__(
        self, manifest: Manifest, max_pixels: int, regions: ConfigDict, backend: Backend
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
        text = json.dumps([FORMAT_VERSION, backend.identity], sort_keys=True)
        self.folder = root / f"{backend.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        files = sorted({page.path for page in manifest.pages})
        self._sources: dict[str, Path | None] = dict.fromkeys(files)
        if backend.source is not None:
            self._sources = {path: backend.source(manifest.root, path) for path in files}
        here = Path(os.path.abspath(root))
        looked_up = {os.path.abspath(s) for s in self._sources.values() if s is not None}
        contents = fingerprints(manifest.root, files, here / FINGERPRINTS)
        contents_of_source = fingerprints(here, looked_up, here / FINGERPRINTS)
        self.digests = [
            _digest(
                contents[page.path],
                page.box,
                contents_of_source.get(os.path.abspath(self._sources[page.path] or ""), ""),
            )
            for page in manifest.pages
        ]

    def ensure(self, log: Callable[[str], None] = print, beam: str = "") -> list[PageMask]:
        """Makes the masks that are missing; what became of each page, in the manifest's order.

        Args:
          log: called with one line at a time.
          beam: options of Apache Beam, which then runs the work of backends on the host.

        Raises:
          UserError: a mask cannot be written, or a worker was killed; finished masks are kept.
        """
        self._start_folder()
        found: dict[int, PageMask] = {}
        jobs = []
        for row, page in enumerate(self.manifest.pages):
            stem = posixpath.splitext(posixpath.basename(page.path))[0]
            job = MaskJob(
                f"{stem[:40]}-{self.digests[row][:16]}", row, self.manifest.root, page,
                self._sources[page.path], self.folder, self._regions, self._max_pixels,
            )  # fmt: skip
            kept = _kept(job)
            if kept is None:
                jobs.append(job)
            else:
                found[row] = kept
        if jobs:
            log(
                f"regions: looking for handwriting on {len(jobs):,} of "
                f"{len(self.manifest):,} pages by {self._backend.name}, into {self.folder}"
            )
            # Several processes that share the folder begin at different pages.
            random.SystemRandom().shuffle(jobs)
            self._make(jobs, found, log, beam)
        masks = [found[row] for row in range(len(self.manifest))]
        _summarise(masks, self.manifest, log)
        return masks

    def _start_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(self.folder / "backend.json", self._backend.identity)
        except OSError as error:
            raise UserError(f"cannot write in {self.folder}: {error.strerror}") from None

    def _make(
        self,
        jobs: Sequence[MaskJob],
        found: dict[int, PageMask],
        log: Callable[[str], None],
        beam: str,
    ) -> None:
        start = last = time.monotonic()
        for done, (row, mask) in enumerate(self._run(jobs, beam), start=1):
            found[row] = mask
            now = time.monotonic()
            if now - last > _LOG_SECONDS and done < len(jobs):
                last = now
                rate = done / (now - start)
                log(
                    f"regions: {done:,} of {len(jobs):,} pages, {rate:.1f} pages/s, "
                    f"{(len(jobs) - done) / rate:,.0f} s left"
                )

    def _run(self, jobs: Sequence[MaskJob], beam: str) -> Iterator[tuple[int, PageMask]]:
        if self._backend.on_device:
            return segment_pages(jobs, self._backend)
        workers = self._regions.workers or usable_cores()
        if beam:
            # Results stay on Beam's workers; pages without a mask are looked at again, to say why.
            done = list(run_beam_jobs(make_mask, jobs, beam))
            jobs = [job for job in done if _kept(job) is None]
            kept = ((job.row, _kept(job)) for job in done if job not in jobs)
            return itertools.chain(kept, run_jobs(make_mask, jobs, min(workers, len(jobs))))
        return run_jobs(make_mask, jobs, min(workers, len(jobs)))


def open_masks(manifest: Manifest, max_pixels: int, regions: ConfigDict) -> RegionMasks | None:
    """The masks of these pages by `regions` (`configs.common.regions_config`); None for `none`.

    Raises:
      UserError: what is wrong with `regions`.
    """
    backend = make_backend(regions)
    if backend is None:
        if regions.min_keypoints:
            raise UserError(
                f"regions.min_keypoints={regions.min_keypoints} counts keypoints in regions; "
                "choose a regions.backend other than 'none'"
            )
        return None
    return RegionMasks(manifest, max_pixels, regions, backend)


def segment_pages(jobs: Sequence[MaskJob], backend: Backend) -> Iterator[tuple[int, PageMask]]:
    """Makes masks in this process, page after page, while threads decode the pages to come."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        pages = [pool.submit(_load, job) for job in jobs[:_AHEAD]]
        for i, job in enumerate(jobs):
            if i + _AHEAD < len(jobs):
                pages.append(pool.submit(_load, jobs[i + _AHEAD]))
            loaded, pages[i] = pages[i].result(), None
            yield job.row, _make_mask(job, backend, loaded)


def make_mask(job: MaskJob) -> tuple[int, PageMask]:
    """Finds, writes and judges the mask of a page; its row and what became of it.

    Raises:
      UserError: the mask cannot be written.
    """
    return job.row, _make_mask(job, make_backend(job.regions), _load(job))


def look(job: MaskJob) -> np.ndarray | PageMask:
    """The mask of a page, bool [h, w], without writing it, or what is wrong with the page."""
    loaded = _load(job)
    if isinstance(loaded, PageMask):
        return loaded
    try:
        return make_backend(job.regions).find(*loaded).mask
    except PageError as error:
        return PageMask(ERROR, _one_line(error), None)


def _load(job: MaskJob) -> tuple[np.ndarray, Place] | PageMask:
    """The pixels of a page and where they are from, or why they cannot be read."""
    try:
        whole = load_page(job.root / job.page.path, None, job.max_pixels)
        image = whole if job.page.box is None else crop(whole, job.page.box)
    except PageError as error:
        return PageMask(UNREADABLE, _one_line(error), None)
    return np.ascontiguousarray(image), Place(whole.shape[:2], job.page.box, job.source)


def _make_mask(
    job: MaskJob, backend: Backend, loaded: tuple[np.ndarray, Place] | PageMask
) -> PageMask:
    if isinstance(loaded, PageMask):
        return loaded
    image, place = loaded
    # Made in an earlier run, but its keypoints were not counted this way.
    info = _read_info(job)
    try:
        if info is None:
            info = _find(job, backend, image, place)
        if job.regions.min_keypoints:
            how = keypoint_filter.name(job.regions)
            mask = read_mask(job.folder / f"{job.name}.png")
            info["keypoints"][how] = keypoint_filter.count(image, mask, job.regions)
            _write_json(job.folder / f"{job.name}.json", info)
    except PageError as error:
        return PageMask(ERROR, _one_line(error), None)
    except OSError as error:
        raise UserError(f"cannot write {job.folder / job.name}: {error.strerror}") from error
    except Exception as error:
        error.add_note(f"while looking for handwriting on page {job.page.page_id}")
        raise
    return _judge(job, info)


def _find(job: MaskJob, backend: Backend, image: np.ndarray, place: Place) -> dict[str, Any]:
    """Writes the mask of a page and the file about it, whose contents are returned."""
    result = backend.find(image, place)
    mask = np.ascontiguousarray(result.mask, bool)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the page {image.shape[:2]}")
    temporary = job.folder / f"{job.name}.{secrets.token_hex(4)}.tmp"
    Image.fromarray(mask).save(temporary, "PNG")
    os.replace(temporary, job.folder / f"{job.name}.png")
    info = {
        "page_id": job.page.page_id,
        "size": [mask.shape[1], mask.shape[0]],
        **backend.identity,
        "source": job.source.name if job.source else "",
        "share": round(float(mask.mean()), 6),
        "scores": [float(score) for score in result.scores],
        "meta": result.meta,
        "keypoints": {},
    }
    _write_json(job.folder / f"{job.name}.json", info)
    return info


def _kept(job: MaskJob) -> PageMask | None:
    """What became of a page in an earlier run; None if something is still to be done."""
    info = _read_info(job)
    if info is None:
        return None
    if job.regions.min_keypoints and keypoint_filter.name(job.regions) not in info["keypoints"]:
        return None
    return _judge(job, info)


def _judge(job: MaskJob, info: dict[str, Any]) -> PageMask:
    file = job.folder / f"{job.name}.png"
    if not info["share"]:
        return PageMask(EMPTY, f"{info['backend']} found no handwriting on it", file)
    if job.regions.min_keypoints:
        counted = info["keypoints"][keypoint_filter.name(job.regions)]
        if counted < job.regions.min_keypoints:
            reason = (
                f"{counted} keypoints in its regions are fewer than regions.min_keypoints="
                f"{job.regions.min_keypoints}"
            )
            return PageMask(FEW, reason, file)
    return PageMask(OK, "", file)


def read_mask(file: Path) -> np.ndarray:
    """A mask of this folder, bool [h, w].

    Raises:
      PageError: missing or damaged.
    """
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return np.asarray(image.convert("1"), bool)
    # A damaged file makes Pillow fail in many ways.
    except Exception as error:
        raise PageError(
            f"its mask {file} is damaged or missing ({_one_line(error)}); delete its .json file, "
            "the same command then makes it again"
        ) from None


def _read_info(job: MaskJob) -> dict[str, Any] | None:
    try:
        return json.loads((job.folder / f"{job.name}.json").read_text())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _digest(content: str, box: tuple[int, int, int, int] | None, source: str) -> str:
    return hashlib.sha256(json.dumps([content, box, source]).encode()).hexdigest()


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _summarise(masks: Sequence[PageMask], manifest: Manifest, log: Callable[[str], None]) -> None:
    counts = Counter(mask.status for mask in masks)
    log("regions: " + ", ".join(f"{counts[status]:,} pages {status}" for status in counts))
    failed = [pair for pair in zip(manifest.pages, masks, strict=True) if pair[1].status != OK]
    for page, mask in failed[:_NAMED]:
        log(f"  {_one_line(page.page_id)}: {mask.status}: {mask.reason}")
    if len(failed) > _NAMED:
        log(f"  and {len(failed) - _NAMED:,} more")
