"""Fits the projection of compact descriptors to fragments of the training pages."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.embedding import compact
from saghog_jax.embedding.compact import Projection
from saghog_jax.embedding.describers import Checkpoint, describers_of
from saghog_jax.embedding.encoder import PageEncoder, filled
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.embedding.run_recipe import read_recipe, write_recipe
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.sampling import evenly
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.runs.checkpoint import CHOICES, params_digest

logger = logging.getLogger(__name__)

# Fragments in all and of a page, and pages, at most.
_FRAGMENTS, _OF_A_PAGE, _PAGES = 2000, 6, 1000
# With fewer fragments than this there is no projection.
_FEWEST = 8
# Fragments whose pooled descriptors are joined at a time.
_BLOCK = 128


def ensure(config: ConfigDict, folder: Path) -> None:
    """Fits the projection of each checkpoint of a finetuned run, unless it has been fitted.

    The recipe of the run folder gets the number of components that were fitted: fewer than asked
    for where there are few fragments, and 0 (long descriptors, with a note) with less than 8.

    Args:
      config: of configs/finetune.py.
      folder: the run folder.

    Raises:
      UserError: no page can be cut.
    """
    recipe = read_recipe(folder)
    if recipe is None or not recipe.compact:
        return
    fitted = []
    for which in CHOICES:
        try:
            checkpoint = Checkpoint(folder, which)
        except UserError:
            # Runs without validation have no best checkpoint.
            continue
        projection = _existing(checkpoint, recipe) or _fit(checkpoint, recipe, config)
        if projection is None:
            write_recipe(replace(recipe, compact=0, full={}), folder)
            return
        fitted += [len(part.variances) for part in projection.parts.values()]
    write_recipe(replace(recipe, compact=min([recipe.compact, *fitted])), folder)


def _existing(checkpoint: Checkpoint, recipe: PageRecipe) -> Projection | None:
    describers = describers_of(checkpoint, recipe.resolved())
    try:
        return compact.of_run(checkpoint.folder, checkpoint.which, recipe, describers)
    except UserError:
        return None


def _fit(checkpoint: Checkpoint, recipe: PageRecipe, config: ConfigDict) -> Projection | None:
    recipe = recipe.resolved()
    describers = describers_of(checkpoint, recipe)
    encoder = PageEncoder(replace(recipe, compact=0), describers)
    rows: list[list[np.ndarray]] = [[] for _ in recipe.parts]
    for sums in _blocks(encoder, _fragment_cuts(recipe, config)):
        for own, part in zip(rows, recipe.part_rows(sums), strict=True):
            own.append(part)
    names = [part.descriptor for part in recipe.parts]
    digests = dict(zip(names, (params_digest(d.variables) for d in describers), strict=True))
    number = sum(map(len, rows[0]))
    if number < _FEWEST:
        logger.warning(
            f"note: {number} fragments are too few for compact descriptors, at least {_FEWEST} "
            "are needed; pages get long descriptors"
        )
        return None
    stacked = {}
    for name, own in zip(names, rows, strict=True):
        stacked[name] = np.concatenate(own)
        own.clear()
    section = config.page.compact
    projection = compact.fit(stacked, digests, section.components, section.shrinkage)
    compact.save(projection, compact.file_of(checkpoint.folder, checkpoint.which))
    numbers = sum(len(part.variances) for part in projection.parts.values())
    logger.info(f"page descriptors have {numbers:,} numbers, fitted to {number:,} fragments")
    return projection


def _fragment_cuts(recipe: PageRecipe, config: ConfigDict) -> Iterator[list[Cut]]:
    """Yields fragments of the training pages, each cut at every scale."""
    manifest = load_manifest(config.data, tell=False)
    masks = open_masks(manifest, config.data.max_pixels, config.regions)
    page_masks = masks.ensure() if masks else None
    chosen = evenly(len(manifest), _PAGES)
    pages = [manifest.pages[i] for i in chosen]
    stream = stream_cuts(
        manifest.root,
        pages,
        recipe.cutting_rule,
        config.data.max_pixels,
        config.store.workers,
        None if page_masks is None else [page_masks[i] for i in chosen],
        chosen,
        recipe.scales,
        recipe.input == "page",
    )
    of_a_page = min(_OF_A_PAGE, math.ceil(_FRAGMENTS / len(pages)))
    timer = ProgressTimer(len(pages))
    logger.info(f"fitting compact page descriptors to fragments of {len(pages):,} pages")
    for number, (page, cuts) in enumerate(zip(pages, stream, strict=True), start=1):
        if progress := timer.due(number):
            left = duration(progress.remaining)
            logger.info(f"{number:,} of {len(pages):,} pages cut, about {left} left")
        try:
            usable = filled(cuts)
        except PageError:
            # Listed by `prepare` and by the patch store of this run.
            continue
        factors = recipe.factors(page.scale)
        yield from compact.fragments(usable, factors, recipe.rule.patch_size, of_a_page)


def _blocks(
    encoder: PageEncoder, fragments: Iterator[Sequence[Cut]]
) -> Iterator[list[list[np.ndarray]]]:
    """Yields the pooled descriptors of fragments as `PageRecipe.join` takes them, in blocks."""
    scales, parts = len(encoder.recipe.scales), len(encoder.recipe.parts)
    block: list[list[np.ndarray]] = []
    for view in encoder.pool(cut for fragment in fragments for cut in fragment):
        block.append(view)
        if len(block) == _BLOCK * scales:
            yield _by_part(block, parts, scales)
            block = []
    if block:
        yield _by_part(block, parts, scales)


def _by_part(
    views: Sequence[Sequence[np.ndarray]], parts: int, scales: int
) -> list[list[np.ndarray]]:
    return [
        [np.stack([view[part] for view in views[j::scales]]) for j in range(scales)]
        for part in range(parts)
    ]
