"""Whitening of patch descriptors before they are pooled (as published for GRK-Papyri), per model.

Fitted on patches of the embedded pages (transductive, like the published one) or loaded from an
earlier embedding. Axis letters: n patches fitted on, d width of a patch descriptor, k components.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.embedding.describers import Model
from saghog_jax.embedding.pooler import Embedder, Pooling
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions.masks import PageMask
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.whitening import Whitening

MODES = ("none", "fit", "load")
FILE = "patch_whitening.npz"
# Pages that patches are drawn from, and float32 values that are fitted on at most: 4 GiB.
_MOST_PAGES = 500
_MOST_VALUES = 1 << 30


def check(config: ConfigDict) -> None:
    """Looks at `config.patch_whitening`.

    Raises:
      UserError: an unknown mode, `load` without a file, too few samples.
    """
    section = config.patch_whitening
    if section.mode not in MODES:
        raise UserError(
            f"unknown config.patch_whitening.mode {section.mode!r}, known: {', '.join(MODES)}"
        )
    if section.mode == "load" and not section.file:
        raise UserError(
            f"config.patch_whitening.mode=load needs config.patch_whitening.file: the {FILE} of an "
            "earlier embedding"
        )
    if section.samples < 2 or section.dim < 0:
        raise UserError(
            f"config.patch_whitening.samples={section.samples} must be at least 2, dim="
            f"{section.dim} at least 0"
        )


def load(path: Path, models: Sequence[Model], digests: Sequence[str]) -> list[Whitening]:
    """One whitening a model: `path` for the first, `path.parent/NAME/path.name` for the others.

    Raises:
      UserError: missing, no whitening, or of other weights.
    """
    found = []
    for i, (model, digest) in enumerate(zip(models, digests, strict=True)):
        where = path if not i else path.parent / model.name / path.name
        fitted, checkpoint = whitening.load(where)
        if len(fitted.mean) != model.dim or (checkpoint and checkpoint != digest):
            raise UserError(
                f"{where} was fitted on patches of width {len(fitted.mean)} of checkpoint "
                f"{checkpoint or 'unknown'}; {model.name} has width {model.dim} of {digest}"
            )
        found.append(fitted)
    return found


def fit(
    config: ConfigDict,
    models: Sequence[Model],
    manifest: Manifest,
    rule: Rule,
    masks: Sequence[PageMask] | None,
) -> list[Whitening]:
    """Fits one whitening a model on patches picked evenly from the pages.

    Raises:
      UserError: fewer than two patches, samples that take too much memory.
    """
    section = config.patch_whitening
    widest = max(model.dim for model in models)
    if section.samples * widest > _MOST_VALUES:
        raise UserError(
            f"config.patch_whitening.samples={section.samples} of width {widest} take more than 4 "
            f"GiB; give at most {_MOST_VALUES // widest}"
        )
    rows = np.unique(np.linspace(0, len(manifest) - 1, _MOST_PAGES).astype(int))
    each = -(-section.samples // len(rows))
    pages = [manifest.pages[row] for row in rows]
    found = None if masks is None else [masks[row] for row in rows]

    def cuts() -> Iterator[Cut]:
        for (cut,) in stream_cuts(
            manifest.root, pages, rule, config.data.max_pixels, config.store.workers, found, rows
        ):
            if not isinstance(cut, str):
                n = len(cut.patches)
                picked = np.unique(np.linspace(0, n - 1, min(n, each)).astype(int)) if n else []
                picked = np.asarray(picked, int)
                yield cut.take(picked)

    plain = Pooling("sum", 1.0, [None] * len(models))
    embedder = Embedder(models, plain, config.local_batch_size, config.pages_per_batch, config.mesh)
    x = embedder.vectors(cuts(), section.samples)
    if len(x[0]) < 2:
        raise UserError("patch whitening needs at least two patches; the pages give fewer")
    return [_fit(model, vectors, section.dim) for model, vectors in zip(models, x, strict=True)]


def _fit(model: Model, x: np.ndarray, dim: int) -> Whitening:
    n, d = x.shape
    k, remark = whitening.choose_dim(dim or max(1, min(d, n // 4)), n, d)
    if remark:
        print(f"note: patch whitening of {model.name}: {remark.replace('pages', 'patches')}")
    return whitening.fit(x, k)
