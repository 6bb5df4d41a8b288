"""Backend for masks that the user provides: a folder of images, white on handwriting."""

import posixpath
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, user_path
from saghog_jax.input_pipeline.pages import frames
from saghog_jax.input_pipeline.pages.images import load_page, orientation
from saghog_jax.input_pipeline.pages.manifest import bare_name
from saghog_jax.input_pipeline.regions.backends import Backend, Place, RegionResult
from saghog_jax.input_pipeline.regions.turned import place_mask, turned_meta
from saghog_jax.input_pipeline.unicode_forms import existing_path

VERSION = 2
# Which file belongs to a page, for messages.
FOLDER_RULE = "the file of the page a/b.jpg is a/b, or b where no other page has the name b"


def make(section: ConfigDict) -> Backend:
    """Creates the backend `masks` from the section `config.regions.masks`.

    Raises:
      UserError: the folder of masks does not exist.
    """
    folder = existing_folder(section.folder, "regions.masks.folder")

    def source(root: Path, path: str, namesakes: Collection[str] = ()) -> Path | None:
        del root
        return first_file(names_below(folder, path, IMAGE_SUFFIXES, namesakes))

    return Backend("masks", VERSION, {}, read_user_mask, source=source)


def read_user_mask(image: np.ndarray, place: Place) -> RegionResult:
    """The mask of a page from its file, resized to the page if necessary.

    A pixel is handwriting if its value is at least half of the brightest value, and not black. A
    mask that was drawn on the image before its EXIF orientation was applied is turned like it.

    Raises:
      PageError: the file does not exist, is not an image, or has other proportions than the page.
    """
    if place.source is None:
        raise PageError(f"regions.masks.folder has no mask for this page; {FOLDER_RULE}")
    h, w = place.shape
    try:
        grey = load_page(place.source, None, max_pixels=4 * h * w).max(axis=2)
    except PageError as error:
        raise PageError(f"the mask {place.source.name}: {error}") from None
    given = (grey >= max(1, (int(grey.max()) + 1) // 2)).astype(np.uint8)

    def draw(shape: tuple[int, int]) -> np.ndarray:
        return cv2.resize(given, shape[::-1], interpolation=cv2.INTER_NEAREST)

    if orientation(place.source) != 1:
        # `load_page` has turned the mask already.
        place = place._replace(image=None)
    what = f"the mask {place.source.name}"
    mask, turned = place_mask(draw, given.shape, image, place, what)
    meta = {"given_size": [grey.shape[1], grey.shape[0]], **turned_meta(turned)}
    return RegionResult(mask, (), meta)


def existing_folder(folder: str, field: str) -> Path:
    """The folder named by a field of the config.

    Raises:
      UserError: the field is empty, or the folder does not exist.
    """
    path = existing_path(user_path(folder))
    if not folder or not path.is_dir():
        raise UserError(f"{field}={folder!r} is not a folder")
    return path


def names_below(
    folder: Path, path: str, suffixes: Sequence[str], namesakes: Collection[str] = ()
) -> Iterator[Path]:
    """Possible files of the page `a/b.jpg` in a folder: `a/b.png`, `a/b.jpg.png`, `b.png`.

    For a page outside of the manifest's folder only the file name is used.

    Args:
      suffixes: of the files.
      namesakes: bare names of several pages (`Manifest.namesakes`): `b.png` would be the file of an
        unknown one of them, and is left out.
    """
    stem = frames.stem(path)
    inside = not path.startswith(("../", "/"))
    bare = () if bare_name(path) in namesakes else (posixpath.basename(stem),)
    for name in (*((stem, path) if inside else ()), *bare):
        for suffix in suffixes:
            yield folder / f"{name}{suffix}"


def first_file(paths: Iterator[Path]) -> Path | None:
    """The first of these files that exists, in any Unicode form of its name."""
    return next((path for path in map(existing_path, paths) if path.is_file()), None)
