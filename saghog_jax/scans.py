"""From a folder of scans to a report: the stages embed and retrieve (or search) in one go."""

import json
import logging
import webbrowser
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.configs import common, embed, retrieve, search
from saghog_jax.embedding.encoder import run_folder_of
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.store.strokes import best_scale, median_stroke
from saghog_jax.retrieval.embeddings import load_embeddings
from saghog_jax.runs.stage_result import StageResult
from saghog_jax.stages import run_stage

logger = logging.getLogger(__name__)

# What is kept of a collection for its later pages.
FILE = "scans.json"
_CACHE = common.data_config("").cache


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Describes the pages, ranks them, and writes `workdir/report.html`.

    A work folder that exists is continued: known pages are not described again, and new pages are
    resized as the earlier ones.

    Raises:
      UserError: there are no pages, no model, or no gallery, or none of the pages can be used.
    """
    gallery = _gallery(config)
    if config.data.cache == _CACHE:
        # Everything goes to one folder.
        config = config.copy_and_resolve_references()
        config.data.cache = str(workdir / "cache")
    manifest = load_manifest(config.data)
    if len(manifest) < 2 and not gallery:
        raise UserError(
            f"{config.data.pages!r} has one page; pages are compared with each other, so give two "
            "or more, or search the page in an earlier collection"
        )
    logger.info(f"{len(manifest):,} pages in {config.data.pages}")
    scale = _scale(config, manifest, workdir, gallery)
    _keep(workdir, scale)
    embedded = run_stage(_embed_config(config, scale, workdir, gallery), workdir / "embed")
    if gallery:
        ranked = run_stage(_search_config(config, workdir, gallery), workdir)
    else:
        ranked = run_stage(_retrieve_config(config, workdir), workdir)
    report = ranked.paths["report"]
    if config.open:
        webbrowser.open(report.as_uri())
    return StageResult(
        workdir,
        paths={**ranked.paths, "embeddings": workdir / "embed"},
        counts=embedded.counts,
        skipped=embedded.skipped,
    )


def _gallery(config: ConfigDict) -> Path | None:
    """The work folder that is searched.

    Raises:
      UserError: it is no work folder of this stage.
    """
    if not config.gallery:
        return None
    folder = Path(config.gallery).resolve()
    if not (folder / FILE).is_file():
        raise UserError(
            f"config.gallery={config.gallery!r} is no work folder of `scans`: {FILE} is missing"
        )
    return folder


def _scale(config: ConfigDict, manifest: Manifest, workdir: Path, gallery: Path | None) -> float:
    """The factor by which all pages are resized: asked for, kept, of the gallery, or found.

    Raises:
      UserError: the factor is negative.
    """
    if config.scale < 0:
        raise UserError(f"config.scale={config.scale:g} must be 0 or a factor above 0")
    if config.scale:
        return config.scale
    for folder in (gallery, workdir):
        if folder is not None and (folder / FILE).is_file():
            scale = float(json.loads((folder / FILE).read_text())["scale"])
            logger.info(f"pages are resized by {scale:g}, as those of {folder}")
            return scale
    width = median_stroke(manifest, config.data.max_pixels, config.scale_pages, config.workers)
    scale = best_scale(width)
    if width:
        logger.info(f"strokes are {width:.1f} pixels wide: pages are resized by {scale:g}")
    return scale


def _keep(workdir: Path, scale: float) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_write(workdir / FILE, "w") as file:
        file.write(json.dumps({"scale": scale}) + "\n")


def _embed_config(
    config: ConfigDict, scale: float, workdir: Path, gallery: Path | None
) -> ConfigDict:
    made = embed.get_config("plain")
    made.data, made.regions = config.data, config.regions
    made.regions.root = str(workdir / "regions")
    made.checkpoint, made.which = _checkpoint(config, gallery), config.which
    made.store.scale, made.store.workers = scale, config.workers
    made.regions.workers = config.workers
    return made


def _checkpoint(config: ConfigDict, gallery: Path | None) -> str:
    if config.checkpoint is not None:
        return config.checkpoint
    if gallery is None:
        return embed.get_config("plain").checkpoint
    embeddings = gallery / "embed"
    return str(run_folder_of(load_embeddings(embeddings).meta, embeddings).resolve())


def _retrieve_config(config: ConfigDict, workdir: Path) -> ConfigDict:
    made = retrieve.get_config()
    made.embeddings, made.compare = str(workdir / "embed"), ()
    made.top_k, made.report = config.top_k, config.report
    return made


def _search_config(config: ConfigDict, workdir: Path, gallery: Path) -> ConfigDict:
    made = search.get_config()
    made.queries, made.gallery = str(workdir / "embed"), str(gallery / "embed")
    made.top_k, made.report = config.top_k, config.report
    return made
