"""Masks that the user has: a folder of images, white where handwriting is."""

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES
from saghog_jax.input_pipeline.pages.images import crop, load_page
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult

VERSION = 1
# Width / height of a mask may differ by this share from that of its image, which rounding explains.
_SKEW = 0.01


def make(section: ConfigDict) -> Backend:
    """The backend `masks` of the section `config.regions.masks`.

    Raises:
      UserError: its folder does not exist.
    """
    folder = existing_folder(section.folder, "regions.masks.folder")

    def source(root: Path, path: str) -> Path | None:
        del root
        return first_file(names_below(folder, path, IMAGE_SUFFIXES))

    return Backend("masks", VERSION, {}, find_given, source=source)


def find_given(image: np.ndarray, place: Place) -> RegionResult:
    """The mask of a page, from its file, scaled to the page if need be.

    Where a pixel is black is no handwriting; grey counts from half of the brightest on.

    Raises:
      PageError: no file, not an image, or one of other proportions than the page.
    """
    if place.source is None:
        raise PageError("there is no mask of it in regions.masks.folder")
    h, w = place.shape
    try:
        given = load_page(place.source, None, max_pixels=4 * h * w).max(axis=2)
    except PageError as error:
        raise PageError(f"its mask {place.source.name}: {error}") from None
    check_proportions(given.shape, place.shape, f"its mask {place.source.name}")
    whole = (given >= max(1, (int(given.max()) + 1) // 2)).astype(np.uint8)
    if whole.shape != (h, w):
        whole = cv2.resize(whole, (w, h), interpolation=cv2.INTER_NEAREST)
    mask = whole if place.box is None else crop(whole, place.box)
    return RegionResult(mask > 0, (), {"given_size": [given.shape[1], given.shape[0]]})


def check_proportions(given: Sequence[float], page: Sequence[int], what: str) -> None:
    """Raises PageError where a size (h, w) cannot be the page's at another resolution."""
    skew = (given[0] * page[1]) / (given[1] * page[0])
    if not 1 - _SKEW <= skew <= 1 + _SKEW:
        raise PageError(
            f"{what} is of {given[1]:g} x {given[0]:g} pixels, which the page of {page[1]} x "
            f"{page[0]} is not at any scale"
        )


def existing_folder(folder: str, field: str) -> Path:
    """A folder that a field of the config names.

    Raises:
      UserError: none is named, or it does not exist.
    """
    path = Path(folder).expanduser()
    if not folder or not path.is_dir():
        raise UserError(f"{field}={folder!r} is not a folder")
    return path


def names_below(folder: Path, path: str, suffixes: Sequence[str]) -> Iterator[Path]:
    """Where a file that belongs to the page `a/b.jpg` may lie: `a/b.png`, `a/b.jpg.png`, `b.png`.

    A page whose path leads out of the manifest's folder is looked for by its name alone.
    """
    stem, _ = posixpath.splitext(path)
    inside = not path.startswith(("../", "/"))
    for name in (*((stem, path) if inside else ()), posixpath.basename(stem)):
        for suffix in suffixes:
            yield folder / f"{name}{suffix}"


def first_file(paths: Iterator[Path]) -> Path | None:
    """The first of these that exists."""
    return next((path for path in paths if path.is_file()), None)
