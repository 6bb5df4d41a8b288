"""Stage 3: pages to page descriptors, by the recipe of a checkpoint (paper, section 3).

Every process embeds its share of the pages on its own devices and records each finished page; the
main process writes the folders when all pages are embedded.
"""

import contextlib
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.embedding import compact, folders, input_digests, notes, patch_whitening, reuse
from saghog_jax.embedding.compact import Projection
from saghog_jax.embedding.describers import (
    Checkpoint,
    PatchDescriber,
    compared_describers,
    describers_of,
)
from saghog_jax.embedding.encoder import PageEncoder
from saghog_jax.embedding.journal import Journal, PageResult
from saghog_jax.embedding.recipe import PageRecipe, listed
from saghog_jax.input_pipeline.cutting.patches import Cut, Rule
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions.masks import PageMask, RegionMasks, open_masks
from saghog_jax.input_pipeline.regions.page_check import note_inverted
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval import exports, whitening
from saghog_jax.runs.checkpoint import params_digest
from saghog_jax.runs.stage_result import NextStage, StageResult
from saghog_jax.weights.packed import model_folder

logger = logging.getLogger(__name__)

INPUTS = ("auto", "page", "binary")


@dataclass(frozen=True)
class _Work:
    """What is embedded, and how.

    describers: of the recipe's parts, then those to compare with.
    digests: SHA-256 of the weights of each describer.
    rule: cuts the patches that all describers read.
    masks: of the handwriting, where a region backend is used.
    projection: of the parts, for compact descriptors.
    """

    config: ConfigDict
    recipe: PageRecipe
    describers: list[PatchDescriber]
    digests: list[str]
    rule: Rule
    manifest: Manifest
    masks: RegionMasks | None
    projection: Projection | None


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Embeds all pages.

    Finished pages are recorded in `workdir/parts` until all are embedded, so that a killed run
    continues. The record belongs to one set of models, pages and settings.

    Raises:
      UserError: the checkpoint or the pages do not exist, a choice is unknown, or no page can be
        embedded.
    """
    _check(config)
    checkpoint = Checkpoint(model_folder(config.checkpoint), config.which)
    work = _open(config, checkpoint)
    encoder = _encoder(work, [None] * len(work.describers))
    outputs = folders.outputs_of(encoder, config.compare, workdir)
    digests = distributed.main_first(lambda: _digests(work))
    finished = all(input_digests.of_folder(o.folder) == digests.whole for o in outputs)
    distributed.barrier("looked")
    if finished:
        return _reuse(work, outputs, workdir, checkpoint.folder)
    masks = distributed.main_first(work.masks.ensure) if work.masks else None
    parts = workdir / "parts"
    if distributed.is_main():
        reuse.begin(parts, digests, [output.folder for output in outputs])
    whitenings = _whitenings(work, masks, parts / patch_whitening.FILE)
    if any(fitted is not None for fitted in whitenings):
        encoder = _encoder(work, whitenings)
        outputs = folders.outputs_of(encoder, config.compare, workdir)
    names = [describer.name for describer in work.describers]
    distributed.barrier("begun")
    widths = list(zip(names, encoder.widths, strict=True))
    record = reuse.Record(parts, digests, len(work.recipe.scales), widths, jax.process_index())
    embedded_before = record.read()
    distributed.barrier("read")
    _announce(work, names, len(embedded_before))
    _embed(work, encoder, record, masks, embedded_before)
    distributed.barrier("embedded")
    embedded = folders.Embedded(
        encoder=encoder,
        digests=work.digests,
        checkpoint=checkpoint.folder,
        which=config.which,
        manifest=work.manifest,
        record=record,
        results=record.read(),
        regions=work.masks.identity if work.masks else {"backend": "none"},
    )
    skipped = embedded.skipped
    if len(skipped) == len(work.manifest):
        raise UserError(
            f"none of the {len(work.manifest)} pages of {config.data.pages!r} could be embedded: "
            f"{work.manifest.pages[0].page_id}: {skipped[0]}"
        )
    if distributed.is_main():
        folders.write(embedded, outputs, workdir, config.few_patches)
        folders.export(outputs, config.export_formats)
        shutil.rmtree(parts)
    distributed.barrier("written")
    reasons = [(work.manifest.pages[i].page_id, reason) for i, reason in skipped.items()]
    return _result(outputs, workdir, checkpoint.folder, len(work.manifest), reasons)


def _open(config: ConfigDict, checkpoint: Checkpoint) -> _Work:
    """Everything that decides the embeddings.

    Raises:
      UserError: see `run`.
    """
    recipe = checkpoint.recipe().with_config(config).resolved()
    notes.note_long_descriptors(checkpoint.recipe(), recipe, config)
    describers = describers_of(checkpoint, recipe)
    known = {describer.name for describer in describers}
    describers += compared_describers(checkpoint, recipe, config.compare, known)
    notes.note_other_scale(checkpoint, recipe)
    rule = recipe.cutting_rule
    if any(recipe.alone(d.descriptor).cutting_rule.descriptors for d in describers):
        rule = replace(rule, descriptors=True)
    manifest = load_manifest(config.data)
    return _Work(
        config=config,
        recipe=recipe,
        describers=describers,
        digests=[params_digest(describer.variables) for describer in describers],
        rule=rule,
        manifest=manifest,
        masks=open_masks(manifest, config.data.max_pixels, ConfigDict(dict(recipe.regions))),
        projection=compact.of_run(checkpoint.folder, config.which, recipe, describers),
    )


def _encoder(work: _Work, whitenings: Sequence[whitening.Whitening | None]) -> PageEncoder:
    config = work.config
    mode = config.patch_whitening.mode
    return PageEncoder(
        replace(work.recipe, patch_whitening=mode),
        work.describers,
        whitenings,
        work.projection,
        batch_size=config.local_batch_size,
        pages_per_batch=config.pages_per_batch,
        mesh=config.mesh,
    )


def _reuse(
    work: _Work, outputs: Sequence[folders.Output], workdir: Path, checkpoint: Path
) -> StageResult:
    """The result of an embedding that is finished; the labels of its pages may have changed."""
    if distributed.is_main():
        relabelled = folders.relabel_pages(work.manifest, outputs)
        folders.export(outputs, work.config.export_formats)
        remark = "; the labels of its pages were updated" if relabelled else ""
        logger.info(f"{workdir} holds these embeddings already{remark}")
    skipped = folders.read_skipped(workdir)
    return _result(outputs, workdir, checkpoint, len(work.manifest), skipped)


def _result(
    outputs: Sequence[folders.Output],
    workdir: Path,
    checkpoint: Path,
    pages: int,
    skipped: Sequence[tuple[str, str]],
) -> StageResult:
    retrieve = NextStage("retrieve", fields={"embeddings": workdir})
    gallery = folders.gallery_of(workdir, checkpoint)
    fields = {"queries": workdir, "gallery": gallery}
    return StageResult(
        workdir=workdir,
        paths={output.name: output.folder for output in outputs},
        counts={"pages": pages - len(skipped)},
        skipped=tuple(skipped),
        following=(retrieve if gallery is None else NextStage("search", fields=fields),),
    )


def _check(config: ConfigDict) -> None:
    check_choice("config.input", config.input, INPUTS)
    for name in config.export_formats:
        check_choice("config.export_formats", name, exports.FORMATS)
    patch_whitening.check(config)


def _whitenings(
    work: _Work, masks: Sequence[PageMask] | None, kept: Path
) -> list[whitening.Whitening | None]:
    """The whitening of each describer's patches; `kept` is the file of the first."""
    scales = work.recipe.scales
    return patch_whitening.whitenings(
        work.config,
        work.describers,
        work.digests,
        work.manifest.at_scales(scales),
        work.rule,
        [mask for mask in masks for _ in scales] if masks else None,
        kept,
    )


def _announce(work: _Work, names: Sequence[str], finished_views: int) -> None:
    if not distributed.is_main():
        return
    manifest, scales = work.manifest, work.recipe.scales
    which = split_remark(manifest, work.config.data.split)
    at = f" at the scales {listed(scales)}" if len(scales) > 1 else ""
    ready = finished_views // len(scales)
    logger.info(
        f"embedding {len(manifest):,} pages{which}{at} with {', '.join(names)}"
        + (f"; {ready:,} are finished already" if ready else "")
    )


def split_remark(manifest: Manifest, split: str) -> str:
    """Says that the pages of other splits are left out; empty where the manifest has no splits."""
    if not split or not any(page.split for page in manifest.pages):
        return ""
    return f" of the split {split!r} (--config.data.split= takes all)"


def _embed(
    work: _Work,
    encoder: PageEncoder,
    record: Journal,
    masks: Sequence[PageMask] | None,
    embedded_before: dict[int, PageResult],
) -> None:
    """Cuts and embeds this process's share of the pages, except those that are finished.

    Finished views (pages at a scale) keep their places in the batches, so that an embedding that
    was stopped ends in the same bits as one that was not.
    """
    scales = len(work.recipe.scales)
    pages = range(jax.process_index(), len(work.manifest), jax.process_count())
    views = [page * scales + j for page in pages for j in range(scales)]
    missing = [view for view in views if view not in embedded_before]
    results: dict[int, PageResult] = {}
    inverted: list[str] = []

    def cuts() -> Iterator[Cut | int]:
        stream = _page_cuts(work, masks, missing, inverted, encoder.reads_colours)
        empty = Cut(*(np.zeros((0, 1), np.uint8),) * 4, None)
        for view in views:
            if view in embedded_before:
                yield embedded_before[view].patches
                continue
            cut = next(stream)
            cut, reason = (empty, cut) if isinstance(cut, str) else (cut, "")
            count, ink = len(cut.patches), int(np.bitwise_count(cut.ink).sum(dtype=np.int64))
            if not count and not reason:
                reason = "no patch passed the rule (a blank page?)"
            results[view] = PageResult(count, ink, reason)
            yield cut

    timer = ProgressTimer(len(missing))
    finished = patches = 0
    with contextlib.closing(record):
        for view, descriptors in zip(views, encoder.pool(cuts()), strict=True):
            if view in embedded_before:
                continue
            record.append(view, descriptors, results[view])
            finished, patches = finished + 1, patches + results[view].patches
            if progress := timer.due(finished):
                logger.info(
                    f"{finished // scales:,} of {math.ceil(len(missing) / scales):,} pages "
                    f"described, about {duration(progress.remaining)} left"
                )
                logger.debug(f"{patches / progress.elapsed:,.0f} patches/s")
    note_inverted(inverted, logger.info)


def _page_cuts(
    work: _Work,
    masks: Sequence[PageMask] | None,
    views: Sequence[int],
    inverted: list[str],
    colours: bool,
) -> Iterator[Cut | str]:
    """Yields the cut of each view (page * scales + scale), ascending; pages are decoded once.

    The pages that are inverted are added to `inverted`. `colours` is `PageEncoder.reads_colours`.
    """
    scales = work.recipe.scales
    pages = sorted({view // len(scales) for view in views})
    stream = stream_cuts(
        work.manifest.root,
        [work.manifest.pages[page] for page in pages],
        work.rule,
        work.config.data.max_pixels,
        work.config.store.workers,
        None if masks is None else [masks[page] for page in pages],
        pages,
        scales,
        colours,
    )
    needed = set(views)
    for page, page_cuts in zip(pages, stream, strict=True):
        if page_cuts.inverted:
            inverted.append(work.manifest.pages[page].page_id)
        for j, cut in enumerate(page_cuts):
            if page * len(scales) + j in needed:
                yield cut


def _digests(work: _Work) -> input_digests.InputDigests:
    return input_digests.digests(
        work.recipe,
        work.describers,
        work.digests,
        work.manifest,
        work.masks,
        work.config,
        "" if work.projection is None else work.projection.digest,
    )
