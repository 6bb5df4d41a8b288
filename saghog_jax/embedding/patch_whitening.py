"""PCA whitening of patch descriptors before pooling (as published for GRK-Papyri), per describer.

Fitted on patches of the embedded pages (transductive, as published) or loaded from an earlier
embedding. Axis letters: n patches fitted on, d width of a patch descriptor, k components.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.embedding.describers import PatchDescriber
from saghog_jax.embedding.pooler import PagePooler, Pooling
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions.masks import PageMask
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval import whitening
from saghog_jax.retrieval.aggregate import GMP_MAX_WIDTH
from saghog_jax.retrieval.whitening import Whitening

logger = logging.getLogger(__name__)

MODES = ("none", "fit", "load")
FILE = "patch_whitening.npz"
# Pages that patches are drawn from, and float32 values that are fitted on at most: 4 GiB.
_MOST_PAGES = 500
_MOST_VALUES = 1 << 30


def check(config: ConfigDict) -> None:
    """Checks `config.patch_whitening`.

    Raises:
      UserError: an unknown mode, `load` without a file, too few samples.
    """
    section = config.patch_whitening
    check_choice("config.patch_whitening.mode", section.mode, MODES)
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


def file_of(folder: Path, describer: PatchDescriber, first: bool) -> Path:
    """Where an embeddings folder keeps the whitening of a describer, the recipe's first or not."""
    return folder / FILE if first else folder / describer.name / FILE


def load(
    path: Path, describers: Sequence[PatchDescriber], digests: Sequence[str]
) -> list[Whitening]:
    """One whitening a describer: `path` for the first, `path.parent/NAME/path.name` for the others.

    Raises:
      UserError: a file is missing, holds no whitening, or was fitted on other weights.
    """
    whitenings = []
    for i, (describer, digest) in enumerate(zip(describers, digests, strict=True)):
        where = path if not i else path.parent / describer.name / path.name
        fitted, checkpoint = whitening.load(where)
        if len(fitted.mean) != describer.dim or (checkpoint and checkpoint != digest):
            raise UserError(
                f"{where} was fitted on patches of width {len(fitted.mean)} of checkpoint "
                f"{checkpoint or 'unknown'}; {describer.name} has width {describer.dim} of {digest}"
            )
        whitenings.append(fitted)
    return whitenings


def whitenings(
    config: ConfigDict,
    describers: Sequence[PatchDescriber],
    digests: Sequence[str],
    manifest: Manifest,
    rule: Rule,
    masks: Sequence[PageMask] | None,
    kept: Path,
) -> list[Whitening | None]:
    """The whitening that a config of configs/embed.py asks for, of each describer; None: none.

    Args:
      digests: of the weights of the describers.
      manifest, masks: see `fit`.
      kept: file of the first describer; fitted whitenings are kept there and reused.

    Raises:
      UserError: see `fit` and `load`; descriptors that are too wide for pooling `gmp`.
    """
    fitted: list[Whitening | None] = [None] * len(describers)
    mode = config.patch_whitening.mode
    if mode == "load":
        fitted = list(load(Path(config.patch_whitening.file), describers, digests))
    elif mode == "fit":

        def ensure() -> list[Whitening]:
            files = [file_of(kept.parent, d, first=not i) for i, d in enumerate(describers)]
            if not all(path.exists() for path in files):
                new = fit(config, describers, manifest, rule, masks)
                for path, one, digest in zip(files, new, digests, strict=True):
                    whitening.save(one, path, digest)
            return load(kept, describers, digests)

        fitted = list(distributed.main_first(ensure))
    for describer, one in zip(describers, fitted, strict=True):
        width = describer.dim if one is None else len(one.variances)
        if config.pooling == "gmp" and width > GMP_MAX_WIDTH:
            raise UserError(
                f"config.pooling=gmp pools patch descriptors of width {GMP_MAX_WIDTH} at most; "
                f"those of {describer.name} have {width}; --config.patch_whitening.mode=fit "
                "--config.patch_whitening.dim=512 makes fewer of them"
            )
    return fitted


def fit(
    config: ConfigDict,
    describers: Sequence[PatchDescriber],
    manifest: Manifest,
    rule: Rule,
    masks: Sequence[PageMask] | None,
) -> list[Whitening]:
    """Fits one whitening a describer on patches picked evenly from the pages.

    Args:
      config: of configs/embed.py.
      manifest: pages, each at every scale (`Manifest.at_scales`); `masks` are in the same order.

    Raises:
      UserError: fewer than two patches, or samples that need too much memory.
    """
    section = config.patch_whitening
    widest = max(describer.dim for describer in describers)
    if section.samples * widest > _MOST_VALUES:
        raise UserError(
            f"config.patch_whitening.samples={section.samples} of width {widest} take more than 4 "
            f"GiB; give at most {_MOST_VALUES // widest}"
        )
    rows = np.unique(np.linspace(0, len(manifest) - 1, _MOST_PAGES).astype(int))
    each = -(-section.samples // len(rows))
    pages = [manifest.pages[row] for row in rows]
    page_masks = None if masks is None else [masks[row] for row in rows]
    max_pixels, workers = config.data.max_pixels, config.store.workers

    def cuts() -> Iterator[Cut]:
        stream = stream_cuts(manifest.root, pages, rule, max_pixels, workers, page_masks, rows)
        for (cut,) in stream:
            if not isinstance(cut, str):
                yield cut.take(evenly(len(cut.patches), each))

    plain = Pooling("sum", 1.0, [None] * len(describers))
    pooler = PagePooler(
        describers, plain, config.local_batch_size, config.pages_per_batch, config.mesh
    )
    x = pooler.vectors(cuts(), section.samples)
    if len(x[0]) < 2:
        raise UserError("patch whitening needs at least two patches; the pages give fewer")
    return [
        _fit(describer, vectors, section.dim)
        for describer, vectors in zip(describers, x, strict=True)
    ]


def _fit(describer: PatchDescriber, x: np.ndarray, dim: int) -> Whitening:
    n, d = x.shape
    k, remark = whitening.choose_dim(dim or max(1, min(d, n // 4)), n, d)
    if remark:
        logger.info(
            f"note: patch whitening of {describer.name}: {remark.replace('pages', 'patches')}"
        )
    return whitening.fit(x, k)
