"""The mask of one page: computing, writing, filtering and reading it; see `masks`."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from saghog_jax.input_pipeline.errors import NoWritingError, PageError, UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.images import crop, load_page
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.input_pipeline.pages.pixel_limit import pillow_limit_lifted
from saghog_jax.input_pipeline.regions import keypoint_filter
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult, make_backend
from saghog_jax.input_pipeline.regions.page_check import INVERTED, checked_page

OK, EMPTY, FEW, ERROR, UNREADABLE = "ok", "empty", "too few keypoints", "error", "unreadable"


class PageMask(NamedTuple):
    """The result for a page.

    status: `ok`; `empty` (no writing, or the backend found no handwriting); `too few keypoints` (in
      the mask); `error` (the backend cannot process this page); `unreadable` (the image file is
      damaged).
    reason: why the status is not `ok`; of a page that is `ok`, a remark if it was inverted.
    file: the mask; None without a mask.
    """

    status: str
    reason: str
    file: Path | None

    def read(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask, bool [h, w], resized to this shape, the shape of the (scaled) page.

        Raises:
          PageError: the file is damaged, or belongs to a page of other proportions.
        """
        return resize_mask(read_mask(self.file), shape)

    def info(self) -> dict[str, Any]:
        """Contents of the mask's JSON file, such as `share` and `keypoints`; {} without a mask."""
        return json.loads(self.file.with_suffix(".json").read_text()) if self.file else {}


class LoadedPage(NamedTuple):
    """A page as the backends see it.

    image: uint8 [h, w, 3], RGB, dark writing on light ground.
    place: its origin.
    inverted: whether the page was inverted.
    no_writing: why it has no writing; empty if it has.
    """

    image: np.ndarray
    place: Place
    inverted: bool
    no_writing: str


class MaskJob(NamedTuple):
    """A page whose mask is to be computed; sent to the workers."""

    name: str
    row: int
    root: Path
    page: Page
    source: Path | None
    folder: Path
    regions: ConfigDict
    max_pixels: int


def make_mask(job: MaskJob) -> tuple[int, PageMask]:
    """Computes and writes the mask of a page.

    Returns:
      the page's row and result.

    Raises:
      UserError: the mask cannot be written.
    """
    return job.row, make_loaded(job, make_backend(job.regions), load(job))


def preview(job: MaskJob) -> np.ndarray | PageMask | None:
    """The mask of a page, bool [h, w], read from disk or else computed but not written.

    Returns:
      a PageMask if the page is not `ok`; None if computing the mask needs a device. The keypoints
      of a mask that is computed here are not counted.
    """
    known = read_result(job)
    if known is not None:
        return read_mask(known.file) if known.status == OK else known
    backend = make_backend(job.regions)
    if backend.on_device:
        return None
    loaded = load(job)
    if isinstance(loaded, PageMask):
        return loaded
    if loaded.no_writing:
        return PageMask(EMPTY, loaded.no_writing, None)
    try:
        mask = backend.find(loaded.image, loaded.place).mask
    except PageError as error:
        return PageMask(ERROR, one_line(error), None)
    return mask if mask.any() else PageMask(EMPTY, _nothing(backend.name), None)


def find_mask(
    image: np.ndarray, path: Path | None, backend: Backend, regions: ConfigDict
) -> np.ndarray:
    """The mask of one whole page, bool [h, w]; no file is written.

    Args:
      image: uint8 [h, w, 3], RGB.
      path: of the image file; only backends that read masks from files need it.
      backend: created from `regions`.

    Raises:
      PageError: the backend found no handwriting or too little, or it needs the path.
    """
    source = None
    if backend.source is not None:
        if path is None:
            raise PageError(f"regions.backend={backend.name} needs the path of the image file")
        source = backend.source(path.parent, path.name, ())
    result = backend.find(image, Place(image.shape[:2], None, source, path))
    mask = np.ascontiguousarray(result.mask, bool)
    if not mask.any():
        raise PageError(_nothing(backend.name))
    if regions.min_keypoints:
        reason = _too_few(keypoint_filter.count(image, mask, regions), regions)
        if reason:
            raise PageError(reason)
    return mask


def load(job: MaskJob) -> LoadedPage | PageMask:
    """A page for the backends, or the result for a page that cannot be read."""
    path = job.root / job.page.path
    inverted, no_writing = False, ""
    try:
        whole = load_page(path, None, job.max_pixels)
        image = whole if job.page.box is None else crop(whole, job.page.box)
        image = np.ascontiguousarray(image)
        image, inverted = checked_page(image, job.page.polarity)
    except NoWritingError as error:
        no_writing = one_line(error)
    except PageError as error:
        return PageMask(UNREADABLE, one_line(error), None)
    place = Place(whole.shape[:2], job.page.box, job.source, path)
    return LoadedPage(image, place, inverted, no_writing)


def make_loaded(job: MaskJob, backend: Backend, loaded: LoadedPage | PageMask) -> PageMask:
    """Like `make_mask`, for a page that `load` has read."""
    if isinstance(loaded, PageMask):
        return loaded
    # A mask of an earlier run may exist whose keypoints were not counted in this way.
    info = _read_info(job)
    try:
        if info is None:
            info = _find(job, backend, loaded)
        if job.regions.min_keypoints:
            how = keypoint_filter.name(job.regions)
            mask = read_mask(job.folder / f"{job.name}.png")
            info["keypoints"][how] = keypoint_filter.count(loaded.image, mask, job.regions)
            write_json(job.folder / f"{job.name}.json", info)
    except PageError as error:
        return PageMask(ERROR, one_line(error), None)
    except OSError as error:
        raise UserError(f"cannot write {job.folder / job.name}: {error.strerror}") from error
    except Exception as error:
        error.add_note(f"while looking for handwriting on page {job.page.page_id}")
        raise
    return _judge(job, info)


def _find(job: MaskJob, backend: Backend, loaded: LoadedPage) -> dict[str, Any]:
    """Computes and writes the mask of a page and its JSON file; returns the file's contents."""
    image = loaded.image
    if loaded.no_writing:
        result = RegionResult(np.zeros(image.shape[:2], bool), (), {})
    else:
        result = backend.find(image, loaded.place)
    mask = np.ascontiguousarray(result.mask, bool)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the page {image.shape[:2]}")
    with atomic_write(job.folder / f"{job.name}.png", "wb") as file:
        Image.fromarray(mask).save(file, "PNG")
    info = {
        "page_id": job.page.page_id,
        "size": [mask.shape[1], mask.shape[0]],
        **backend.identity,
        "source": job.source.name if job.source else "",
        "share": round(float(mask.mean()), 6),
        "scores": [float(score) for score in result.scores],
        "meta": result.meta,
        "inverted": loaded.inverted,
        "no_writing": loaded.no_writing,
        "keypoints": {},
    }
    write_json(job.folder / f"{job.name}.json", info)
    return info


def read_result(job: MaskJob) -> PageMask | None:
    """The result of an earlier run for a page; None if the mask or its count is missing."""
    info = _read_info(job)
    if info is None:
        return None
    if job.regions.min_keypoints and keypoint_filter.name(job.regions) not in info["keypoints"]:
        return None
    return _judge(job, info)


def _judge(job: MaskJob, info: dict[str, Any]) -> PageMask:
    file = job.folder / f"{job.name}.png"
    if not info["share"]:
        return PageMask(EMPTY, info["no_writing"] or _nothing(info["backend"]), file)
    if job.regions.min_keypoints:
        reason = _too_few(info["keypoints"][keypoint_filter.name(job.regions)], job.regions)
        if reason:
            return PageMask(FEW, reason, file)
    return PageMask(OK, INVERTED if info["inverted"] else "", file)


def _too_few(count: int, regions: ConfigDict) -> str:
    """The reason why a number of keypoints is too small; empty if it is large enough."""
    if count >= regions.min_keypoints:
        return ""
    least = regions.min_keypoints
    return f"{count} keypoints in the mask are fewer than regions.min_keypoints={least}"


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes a mask, bool [h, w], to this shape, the shape of its page at another scale.

    Raises:
      PageError: the mask has other proportions than the page, so it is the mask of another page.
    """
    if mask.shape == shape:
        return mask
    # Factors that lead from each side of the mask to that of the page. Both sides were rounded.
    low = max((side - 1) / before for side, before in zip(shape, mask.shape, strict=True))
    high = min((side + 1) / before for side, before in zip(shape, mask.shape, strict=True))
    if low > high:
        raise PageError(
            f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels; the page has other "
            f"proportions, {shape[1]} x {shape[0]}, so it was changed after its mask was made. "
            "Give the command again; if that does not help, delete page_fingerprints.json in "
            "the folder data.cache"
        )
    size = shape[::-1]
    return cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def read_mask(file: Path) -> np.ndarray:
    """Reads a mask, bool [h, w].

    Raises:
      PageError: the file is missing or damaged.
    """
    try:
        with pillow_limit_lifted(), Image.open(file, formats=["PNG"]) as image:
            return np.asarray(image.convert("1"), bool)
    # Pillow raises many kinds of exceptions for damaged files.
    except Exception as error:
        raise PageError(
            f"the mask {file} is damaged or missing ({one_line(error)}); delete its .json file, "
            "then the same command computes the mask again"
        ) from None


def _read_info(job: MaskJob) -> dict[str, Any] | None:
    try:
        return json.loads((job.folder / f"{job.name}.json").read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def one_line(error: object) -> str:
    """A message without line breaks, which file names may contain."""
    return " ".join(str(error).split()) or type(error).__name__


def _nothing(backend: str) -> str:
    return f"{backend} found no handwriting on this page"
