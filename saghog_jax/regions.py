"""Stage regions: masks of the handwriting of all pages, a table of them, and a contact sheet."""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.regions.page_mask import OK, PageMask
from saghog_jax.reports import contact_sheet
from saghog_jax.runs.stage_result import NextStage, StageResult, folder_for_pages

logger = logging.getLogger(__name__)

# Collections of fewer pages use the variant `small`.
_SMALL = 1000


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Makes the missing masks, and writes `pages.csv` and `report.html` into `workdir`.

    Raises:
      UserError: the backend is `none`, or see `RegionMasks.ensure`.
    """
    manifest = load_manifest(config.data)
    region_masks = open_masks(manifest, config.data.max_pixels, config.regions)
    if region_masks is None:
        raise UserError("regions.backend is 'none', which makes no masks; choose another backend")
    masks = region_masks.ensure()
    infos = [mask.info() for mask in masks]
    table, sheet = workdir / "pages.csv", workdir / "report.html"
    _write_table(table, manifest, masks, infos)
    contact_sheet.write(sheet, config, manifest, masks, infos)
    logger.info(f"masks: {region_masks.folder}")
    logger.info(f"table: {table}")
    logger.info(f"contact sheet: {sheet}")
    # The recipe for collections of this size (docs/quality.md).
    small = config.data.pages != "synthetic" and len(manifest) < _SMALL
    following = NextStage(
        "pretrain",
        sections={"data": config.data, "regions": config.regions},
        fields={"store.scale": config.store.scale},
        split="",
        variant="small" if small else "",
        workdir=folder_for_pages(workdir, "pretrain", config.data.pages),
    )
    return StageResult(
        workdir,
        paths={"masks": region_masks.folder, "table": table, "report": sheet},
        counts={"pages": len(manifest)},
        skipped=tuple(
            (page.page_id, f"{mask.status}: {mask.reason}")
            for page, mask in zip(manifest.pages, masks, strict=True)
            if mask.status != OK
        ),
        following=(following,),
    )


def _write_table(
    path: Path, manifest: Manifest, masks: Sequence[PageMask], infos: Sequence[dict]
) -> None:
    with atomic_write(path, "w") as file:
        table = csv.writer(file)
        table.writerow(("page_id", "status", "reason", "share", "keypoints", "mask"))
        for page, mask, info in zip(manifest.pages, masks, infos, strict=True):
            keypoints = json.dumps(info["keypoints"]) if info.get("keypoints") else ""
            name = mask.file.name if mask.file else ""
            share = info.get("share", "")
            table.writerow((page.page_id, mask.status, mask.reason, share, keypoints, name))
