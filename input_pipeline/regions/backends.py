"""The one interface to all ways of finding handwriting, and the table of those ways.

A backend is made from its section of `config.regions` and looks at one page at a time. What runs on
the host is called in worker processes; what needs a device is called in the parent, page after
page (an image encoder fills the device with one page). Both write masks (`masks`), and whoever cuts
patches reads these.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import check_choice

# For each name of `config.regions.backend` the module and function that make it of the section
# `config.regions.NAME`. Imported when it is used: those on a device import jax or onnxruntime.
_MAKERS = {
    "ink": ("saghog_jax.input_pipeline.regions.ink", "make"),
    "masks": ("saghog_jax.input_pipeline.regions.given", "make"),
    "xml": ("saghog_jax.input_pipeline.regions.page_xml", "make"),
    "sam": ("saghog_jax.sam.backend", "make"),
    "sam_onnx": ("saghog_jax.sam.onnx_backend", "make"),
}
BACKENDS = ("none", *_MAKERS)


class RegionResult(NamedTuple):
    """What a backend found on a page.

    mask: bool [h, w], the size of the image it was given; True where handwriting is.
    scores: one number a region, larger is surer; empty where the backend has none.
    meta: anything worth knowing about how the mask came about; goes into the mask's JSON file.
    """

    mask: np.ndarray
    scores: tuple[float, ...]
    meta: dict[str, Any]


class Place(NamedTuple):
    """Where the image that a backend looks at comes from; of use to those that look it up.

    shape: h, w in pixels of the whole (upright) image file.
    box: x0, y0, x1, y1 of the part that is the page; None for all of it.
    source: the file that `Backend.source` named for this page, if the backend has such files.
    """

    shape: tuple[int, int]
    box: tuple[int, int, int, int] | None
    source: Path | None


@dataclass(frozen=True)
class Backend:
    """A way of finding handwriting. All but `find` and `source` decides the masks.

    name: of BACKENDS.
    version: raised whenever the same page and parameters would give another mask.
    parameters: what it was configured with, as JSON has it.
    find: the mask of a page, from its pixels uint8 [h, w, 3] (RGB) and its place. Raises PageError
      where this page cannot be judged; other exceptions are faults of the program.
    weights: SHA-256 of each file of weights, by a name for it (not its path).
    source: for backends that look masks up, the file that belongs to an image, given the root of
      the manifest and the path below it; None where there is none. Its contents are part of what
      identifies the mask.
    on_device: `find` runs in the parent process, by its only thread.
    """

    name: str
    version: int
    parameters: dict[str, Any]
    find: Callable[[np.ndarray, Place], RegionResult]
    weights: dict[str, str] = field(default_factory=dict)
    source: Callable[[Path, str], Path | None] | None = None
    on_device: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its masks, as JSON has it."""
        return {
            "backend": self.name,
            "version": self.version,
            "parameters": self.parameters,
            "weights": self.weights,
        }


def make_backend(regions: ConfigDict) -> Backend | None:
    """The backend that `config.regions` names; None for `none`.

    Raises:
      UserError: an unknown name, or what the backend finds wrong with its section.
    """
    check_choice("regions.backend", regions.backend, BACKENDS)
    if regions.backend == "none":
        return None
    module, function = _MAKERS[regions.backend]
    return getattr(importlib.import_module(module), function)(regions[regions.backend])
