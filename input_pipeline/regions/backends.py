"""The interface of all region backends (ways of finding handwriting), and their table.

A backend is made from its section of `config.regions` and processes one page at a time. Backends on
the host run in worker processes. Backends that need an accelerator run in the parent process, page
after page (an image encoder fills the accelerator with one page). The masks are written to disk
(`masks`) and read when patches are cut.
"""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError, check_choice

# Name of the backend -> module and function that make the backend from `config.regions.NAME`. A
# module is imported when it is used.
_MAKERS = {
    "ink": ("saghog_jax.input_pipeline.regions.ink", "make"),
    "masks": ("saghog_jax.input_pipeline.regions.mask_images", "make"),
    "xml": ("saghog_jax.input_pipeline.regions.page_xml", "make"),
}
# Backends of higher rooms, which register themselves (`register`).
_REGISTERED: dict[str, Callable[[ConfigDict], "Backend"]] = {}
BACKENDS = ("none", *_MAKERS, "sam")


class RegionResult(NamedTuple):
    """The handwriting that a backend found on a page.

    mask: bool [h, w], of the size of the input image; True where handwriting is.
    scores: one number a region, larger is more certain; empty if the backend has no scores.
    meta: further facts about the mask, for the mask's JSON file.
    """

    mask: np.ndarray
    scores: tuple[float, ...]
    meta: dict[str, Any]


class Place(NamedTuple):
    """The origin of the image that a backend processes; used by backends that read files.

    shape: h, w in pixels of the whole (upright) image file.
    box: x0, y0, x1, y1 of the page in that image; None for the whole image.
    source: the file that `Backend.source` returned for this page; None if there is none.
    image: path of the image file; None if the image was given as an array.
    """

    shape: tuple[int, int]
    box: tuple[int, int, int, int] | None
    source: Path | None
    image: Path | None = None


@dataclass(frozen=True)
class Backend:
    """A way of finding handwriting. Name, version, parameters and weights determine the masks.

    name: names the folder of the masks.
    version: increased when the same page and parameters give another mask.
    parameters: the settings, as JSON values.
    find: returns the mask of a page, from its pixels uint8 [h, w, 3] (RGB) and its place. Raises
      PageError if the page cannot be processed; other exceptions are faults of the program.
    weights: name of a file of weights (not its path) -> SHA-256.
    source: for backends that read masks from files: returns the file of an image, from the root of
      the manifest, the image's path below it and the bare names of several pages
      (`Manifest.namesakes`); None if there is no file. The contents of the file are part of the
      mask's identity.
    on_device: `find` runs in the parent process, in one thread.
    """

    name: str
    version: int
    parameters: dict[str, Any]
    find: Callable[[np.ndarray, Place], RegionResult]
    weights: dict[str, str] = field(default_factory=dict)
    source: Callable[[Path, str, Collection[str]], Path | None] | None = None
    on_device: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine the masks, as JSON values."""
        return {
            "backend": self.name,
            "version": self.version,
            "parameters": self.parameters,
            "weights": self.weights,
        }


def make_backend(regions: ConfigDict) -> Backend | None:
    """The backend of the section `config.regions`; None for `none`.

    Raises:
      UserError: an unknown backend, a config without the backend's section, or a wrong field in
        that section.
    """
    check_choice("regions.backend", regions.backend, BACKENDS)
    if regions.backend == "none":
        return None
    if regions.backend not in regions:
        raise UserError(
            f"regions.backend={regions.backend!r} needs its section of the config, which the "
            f"argument of the config adds: --config=configs/prepare.py:regions={regions.backend} "
            "(or another stage's config), instead of --config.regions.backend"
        )
    section = regions[regions.backend]
    if regions.backend in _MAKERS:
        module, function = _MAKERS[regions.backend]
        return getattr(importlib.import_module(module), function)(section)
    return _REGISTERED[regions.backend](section)


def register(name: str, make: Callable[[ConfigDict], Backend]) -> None:
    """Adds a backend of another room.

    Args:
      name: one of `BACKENDS`.
      make: makes the backend from its section of the config.
    """
    _REGISTERED[name] = make
