"""Handwriting by Segment Anything: the region backend `sam`.

SAM sees the edges of the page and generates masks from a grid of points. The rules of the published
code or of the paper choose the masks with handwriting (input_pipeline/regions/sam_rules.py). SAM
runs in Flax or in ONNX files (`engine`).
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from saghog_jax.devices import precision
from saghog_jax.input_pipeline.errors import UserError, unknown_choice
from saghog_jax.input_pipeline.regions import sam_rules
from saghog_jax.input_pipeline.regions.backends import Backend, RegionResult
from saghog_jax.sam.frames import normalised
from saghog_jax.sam.mask_generator import MaskGenerator, Segmenter, to_page
from saghog_jax.sam.model import Sam, SamSizes, single_points
from saghog_jax.sam.onnx_backend import OnnxSegmenter
from saghog_jax.sam.weights import from_published
from saghog_jax.weights.files import read_weights

logger = logging.getLogger(__name__)

# Increased when the same page and parameters give another mask.
VERSION = 1


class FlaxSegmenter:
    """SAM on the accelerator, see `mask_generator.Segmenter`."""

    def __init__(self, params: dict, sizes: SamSizes, dtype: DTypeLike) -> None:
        """Parameters and sizes as `weights.from_published` returns them."""
        self.image_size = sizes.image_size
        self._variables = jax.device_put({"params": params})
        model = Sam(sizes, dtype)

        def encode(variables: dict, images: jax.Array) -> jax.Array:
            return model.apply(variables, images, method="encode")[0]

        def decode(
            variables: dict, embedding: jax.Array, points: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            logits, iou = model.apply(variables, embedding, *single_points(points), method="decode")
            # The first mask is for prompts without ambiguity, which a single point is not.
            return logits[:, 1:], iou[:, 1:]

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)

    def encode(self, frame: np.ndarray) -> jax.Array:
        """[h, w, 3] -> [g, g, d]."""
        return self._encode(self._variables, normalised(frame, self.image_size))

    def decode(self, embedding: jax.Array, points: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """[q, 2] -> logits [q, m, l, l], IoU [q, m]."""
        return self._decode(self._variables, embedding, points)


def make(section: ConfigDict) -> Backend:
    """The backend of the section `config.regions.sam`; files are opened with the first page.

    The masks of the two engines have the names `sam` and `sam_onnx` in their identity.

    Raises:
      UserError: a file is not given or missing, or a field has an unknown value.
    """
    if section.engine == "flax":
        section = precision.resolve(section)
        files = {"weights": section.weights}
        parameters = {"precision": section.precision}
        return _backend("sam", section, files, lambda: _open_flax(section), parameters)
    if section.engine == "onnx":
        files = {"encoder": section.encoder, "decoder": section.decoder}
        return _backend("sam_onnx", section, files, lambda: OnnxSegmenter(*files.values()), {})
    raise UserError(unknown_choice("regions.sam.engine", section.engine, sam_rules.ENGINES))


def _open_flax(section: ConfigDict) -> FlaxSegmenter:
    path = Path(section.weights)
    arrays = read_weights(path)
    try:
        params, sizes, report = from_published(arrays)
    except ValueError as error:
        raise UserError(f"regions.sam.weights={path}: {error}") from None
    logger.info(f"regions: {len(report.used)} arrays of {path} make a SAM of width {sizes.width}")
    for line in report.lines()[len(report.used) :]:
        logger.info("  " + line)
    return FlaxSegmenter(params, sizes, precision.operand_dtype(section.precision))


def _backend(
    name: str,
    section: ConfigDict,
    files: dict[str, str],
    make_segmenter: Callable[[], Segmenter],
    parameters: dict[str, Any],
) -> Backend:
    """A backend with one of the engines.

    Args:
      name: of the backend, in the identity of its masks.
      section: `config.regions.sam`.
      files: field name -> file.
      make_segmenter: called once, with the first page.
      parameters: settings of this engine alone that change masks.
    """
    sam_rules.check(section)
    for field, file in files.items():
        if not file:
            raise UserError(
                f"regions.sam.{field} is empty: give the file, --config.regions.sam.{field}=PATH; "
                "docs/segment_anything.md says where the weights come from"
            )
        if not Path(file).is_file():
            raise UserError(f"regions.sam.{field}: there is no file {file}")
    if min(section.points_per_side, section.points_per_batch) < 1:
        raise UserError(
            f"regions.sam: points_per_side={section.points_per_side} and points_per_batch="
            f"{section.points_per_batch} must be at least 1"
        )
    rules = section[section.rules]

    @functools.cache
    def generator() -> MaskGenerator:
        return MaskGenerator(
            make_segmenter(),
            section.points_per_side,
            section.points_per_batch,
            rules.min_iou,
            rules.min_stability,
            rules.max_overlap,
            section.max_masks,
        )

    return Backend(
        name=name,
        version=VERSION,
        parameters={
            **parameters,
            "input": section.input,
            "points_per_side": section.points_per_side,
            "max_masks": section.max_masks,
            "rules": section.rules,
            **rules.to_dict(),
        },
        find=lambda image, _: find(image, generator(), section),
        weights={field: _sha256(file) for field, file in files.items()},
        on_device=True,
    )


def find(image: np.ndarray, generator: MaskGenerator, section: ConfigDict) -> RegionResult:
    """The handwriting of a page.

    Args:
      image: uint8 [h, w, 3], RGB.
      generator: of masks.
      section: `config.regions.sam`: `input` and `rules` are used.
    """
    edge_map = sam_rules.edges(image)
    frame = np.repeat(edge_map[..., None], 3, axis=-1) if section.input == "edges" else image
    masks = generator(frame)
    choice = sam_rules.choose(masks.masks, edge_map, section)
    mask = np.zeros(image.shape[:2], bool)
    for i in choice.selected:
        mask |= to_page(masks.logits[i], masks.masks.shape[1:], mask.shape)
    mask = sam_rules.without_border(mask, section[section.rules].border)
    shares = masks.masks.mean((1, 2), dtype=np.float64)
    meta = {
        "masks_found": masks.total,
        "masks": [
            {"iou": round(float(iou), 4), "stability": round(float(stability), 4),
             "share": round(float(share), 4), "verdict": verdict}
            for iou, stability, share, verdict in zip(
                masks.iou, masks.stability, shares, choice.verdicts, strict=True
            )
        ],
    }  # fmt: skip
    return RegionResult(mask, tuple(float(masks.iou[i]) for i in choice.selected), meta)


def _sha256(file: str) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
