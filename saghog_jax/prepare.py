"""Stage prepare: cuts pages into patch stores and makes pseudo labels, or only estimates them."""

import logging
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels.pseudo_labels import ensure_labels
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.dry_run import describe, median_width, survey
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.strokes import best_scale
from saghog_jax.runs.stage_result import NextStage, StageResult, folder_for_pages

logger = logging.getLogger(__name__)

# Rule of a store -> stage that reads the store.
NEXT = {"pretrain": "pretrain", "offline": "finetune"}
_PURPOSES = {"pretrain": "pretraining", "offline": "finetuning"}


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Builds the stores of `config.stores`, each in its `root`; nothing is written to `workdir`.

    Raises:
      UserError: see `ensure_store` and `ensure_labels`.
    """
    if config.dry_run:
        return _dry_run(config, workdir)
    paths: dict[str, Path] = {}
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for i, (name, section) in enumerate(config.stores.items()):
        store = Store.open(
            ensure_store(
                config.data, section, beam=config.beam, regions=config.regions, tell=i == 0
            )
        )
        logger.info(f"{len(store):,} patches for {_PURPOSES.get(name, name)} in {store.path}")
        paths[name], counts[f"{name} patches"] = store.path, len(store)
        skipped |= dict(store.skipped)
        if section.descriptors:
            labels = ensure_labels(store, config.pseudo_labels)
            logger.info(
                f"pseudo labels: {(labels >= 0).sum():,} of {len(labels):,} patches in "
                f"{config.pseudo_labels.num_clusters:,} clusters; the others lie between clusters"
            )
    following = tuple(
        NextStage(
            NEXT[name],
            sections={"data": config.data, "store": section, "regions": config.regions},
        )
        for name, section in config.stores.items()
        if name in NEXT
    )
    return StageResult(workdir, paths, counts, tuple(skipped.items()), following)


def _dry_run(config: ConfigDict, workdir: Path) -> StageResult:
    manifest = load_manifest(config.data)
    sections = list(config.stores.values())
    rules = [Rule.from_config(section) for section in sections]
    workers = max(section.workers for section in sections)
    max_pixels = config.data.max_pixels
    # Without a cache of contents nothing is written.
    masks = open_masks(replace(manifest, contents_cache=None), max_pixels, config.regions)
    samples = config.dry_run_samples
    findings = survey(manifest, rules, max_pixels, samples, workers, masks)
    if masks is not None and all(finding.mask_fraction is None for finding in findings):
        logger.info(
            "regions of handwriting are not known yet (run configs/regions.py); for whole pages:"
        )
    for line in describe(manifest, rules, findings):
        logger.info(line)
    skipped = tuple(
        (page.page_id, finding.reason)
        for page, finding in zip(manifest.pages, findings, strict=True)
        if finding.shape is None
    )
    if len(skipped) == len(manifest):
        raise UserError(f"none of the {len(manifest)} pages can be used")
    stage = "regions" if masks is None else "pretrain"
    following = NextStage(
        stage,
        sections={"data": config.data, "regions": config.regions},
        fields={"store.scale": best_scale(median_width(findings), rules[0].scale)},
        workdir=folder_for_pages(workdir, stage, config.data.pages),
    )
    counts = {"pages": len(manifest)}
    return StageResult(workdir, counts=counts, skipped=skipped, following=(following,))
