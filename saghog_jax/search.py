"""Stage search: the nearest pages of a gallery for new pages, to matches.csv and report.html."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.evidence import gather
from saghog_jax.evidence.gather import Compared
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.reports import annotations, decisions, tables
from saghog_jax.reports.commands import command_of
from saghog_jax.reports.sheet_data import Sheets, distances_to_average
from saghog_jax.reports.sheets import Head, select_queries, title_of_search, write_sheets
from saghog_jax.reports.words import LANGUAGE, speaker, words_of
from saghog_jax.retrieval import faiss_search, int8_search, metrics, milvus_search, whitening
from saghog_jax.retrieval.calibration import Calibration, calibrate
from saghog_jax.retrieval.embeddings import (
    Embeddings,
    check_comparable,
    load_embeddings,
)
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.results import groups_of
from saghog_jax.retrieval.search import search
from saghog_jax.runs.stage_result import StageResult

logger = logging.getLogger(__name__)

BACKENDS = ("exact", "int8", "faiss", "milvus")
# Fields that decide the ranking.
_FIELDS = (
    *("queries", "gallery", "calibrate", "exclude_group", "whitening", "force", "top_k", "backend"),
)


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Searches `config.gallery` for the pages of `config.queries`.

    A query that is also in the gallery (the same image and box) is not its own answer. The meaning
    of a distance is calibrated on a labelled set, or not stated at all.

    Raises:
      UserError: embeddings are missing, damaged or made by another recipe, or a column is unknown.
    """
    if config.top_k < 1:
        raise UserError(f"config.top_k={config.top_k}: at least 1")
    check_choice("config.backend", config.backend, BACKENDS)
    decided = decisions.read_decisions(config.decisions) if config.decisions else []
    queries = load_embeddings(config.queries)
    same = Path(config.queries).resolve() == Path(config.gallery).resolve()
    gallery = queries if same else load_embeddings(config.gallery)
    check_comparable(queries, gallery, config.force)
    compared, calibration = _compare(config, queries, gallery, workdir)
    shares = None if calibration is None else calibration(compared.ranking.distances)
    workdir.mkdir(parents=True, exist_ok=True)
    matches = workdir / "matches.csv"
    tables.write_ranking(matches, queries, gallery, compared.ranking, shares)
    if config.annotations:
        path = workdir / "annotations.json"
        known = decisions.of_pages(decided, queries, gallery)
        annotations.write(path, queries, gallery, compared.ranking, shares, known)
        logger.info(f"annotations: {path}, with {decisions.count(known):,} decisions")
    reading = _reading(calibration, config)
    _write_json(workdir / "search.json", config, queries, gallery, calibration, reading)
    path = _write_report(config, compared, shares, reading, workdir)
    answers = compared.ranking.distances.shape[1]
    logger.info(f"{len(queries)} pages, {answers} answers each: {matches}")
    logger.info(reading)
    logger.info(f"report: {path}")
    return StageResult(
        workdir, paths={"matches": matches, "report": path}, counts={"queries": len(queries)}
    )


def _compare(
    config: ConfigDict, queries: Embeddings, gallery: Embeddings, workdir: Path
) -> tuple[Compared, Calibration | None]:
    """The nearest pages of the gallery for each query, and the calibration of the distances."""
    fitted = _whitening(config, gallery)
    x, y = (_whitened(fitted, pages) for pages in (queries, gallery))
    own = np.arange(len(queries)) if queries is gallery else _own_rows(queries, gallery)
    rows, similarity = _nearest(config, queries, gallery, x, y, own, fitted, workdir)
    labels = _shared_codes("writer", queries, gallery)
    ranking = Ranking(*labels, rows, 1 - similarity)
    compared = Compared(queries, gallery, x, y, fitted, ranking)
    return compared, _calibration(config, gallery, fitted)


def _nearest(
    config: ConfigDict,
    queries: Embeddings,
    gallery: Embeddings,
    x: np.ndarray,
    y: np.ndarray,
    own: np.ndarray,
    fitted: whitening.Whitening | None,
    workdir: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and similarities of the nearest pages of y for each row of x, by the backend."""
    k, column = config.top_k, config.exclude_group
    groups = _shared_codes(column, queries, gallery)
    if config.backend == "int8":
        index = int8_search.open_index(gallery.folder, workdir, y, fitted is not None)
        return int8_search.search(x, y, index, k, own, *groups)
    if config.backend == "faiss":
        file = Path(config.faiss.index or workdir / "faiss.index")
        identity = _gallery_identity(gallery, fitted)
        lists, probes = config.faiss.lists, config.faiss.probes
        return faiss_search.search(x, y, k, lists, probes, file, identity, own, *groups)
    if config.backend == "milvus":
        uri = config.milvus.uri or str(workdir / "milvus.db")
        values = queries.column(column) if column else None
        index = config.milvus.index
        return milvus_search.search(x, y, gallery, k, uri, index, own, column, values)
    return search(x, y, k, own, *groups)


def _write_report(
    config: ConfigDict,
    compared: Compared,
    shares: np.ndarray | None,
    reading: str,
    workdir: Path,
) -> Path:
    """Writes report.html, the queries with the nearest answers first; returns its path."""
    queries, gallery, ranking = compared.queries, compared.gallery, compared.ranking
    nearest = dict(enumerate(ranking.distances[:, 0].tolist()))
    order = sorted(nearest, key=lambda row: (nearest[row], row))
    evidence = gather.gather(compared, order, config.report, workdir)
    preferred = {row for row, _ in evidence}
    order = select_queries(nearest, len(queries), config.report.max_queries, preferred)
    notes = {row: {} for row in range(len(queries))}
    x, y = compared.query_descriptors, compared.gallery_descriptors
    backend = {config.backend} & {"faiss", "milvus"}
    sheets = Sheets(
        queries,
        gallery,
        ranking,
        order,
        notes,
        shares,
        average=distances_to_average(x, order, y),
        evidence=evidence,
        command=command_of(config, (*_FIELDS, *backend), workdir),
    )
    title = title_of_search(config.report, queries, gallery)
    head = Head(title, [speaker(words_of(LANGUAGE))("summary.model", model=gallery.name), reading])
    return write_sheets(workdir, "report", head, sheets, config.report)


def _gallery_identity(gallery: Embeddings, fitted: whitening.Whitening | None) -> str:
    parts = [gallery.meta.get("input_digest", ""), gallery.meta.get("checkpoint", "")]
    if not parts[0]:
        # Embeddings that `embed` did not write are identified by their pages.
        parts += gallery.page_ids.tolist()
    if fitted is not None:
        parts.append(hashlib.sha256(fitted.components.tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _whitening(config: ConfigDict, gallery: Embeddings) -> whitening.Whitening | None:
    if not config.whitening:
        return None
    fitted, checkpoint = whitening.load(config.whitening)
    known = gallery.meta.get("checkpoint", "")
    if len(fitted.mean) != gallery.descriptors.shape[1] or (
        checkpoint and known and checkpoint != known
    ):
        raise UserError(
            f"{config.whitening} belongs to other embeddings than {gallery.folder} (width "
            f"{len(fitted.mean)}, checkpoint {checkpoint or 'unknown'})"
        )
    return fitted


def _whitened(fitted: whitening.Whitening | None, pages: Embeddings) -> np.ndarray:
    return pages.descriptors if fitted is None else whitening.apply(fitted, pages.descriptors)


def _own_rows(queries: Embeddings, gallery: Embeddings) -> np.ndarray:
    # Two collections may use one name for two pages: only the same image is the page itself.
    rows = {str(name): row for row, name in enumerate(gallery.page_ids)}
    own = np.full(len(queries), -1)
    for row, name in enumerate(queries.page_ids):
        other = rows.get(str(name), -1)
        if other >= 0 and queries.image(row).resolve() == gallery.image(other).resolve():
            own[row] = other
    return own


def _shared_codes(
    column: str, queries: Embeddings, gallery: Embeddings
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not column:
        return None, None
    both = np.concatenate([queries.column(column), gallery.column(column)])
    codes = metrics.encode_labels(both)
    return codes[: len(queries)], codes[len(queries) :]


def _calibration(
    config: ConfigDict, gallery: Embeddings, fitted: whitening.Whitening | None
) -> Calibration | None:
    if not config.calibrate:
        return None
    labelled = gallery
    if config.calibrate != "{gallery}":
        labelled = load_embeddings(config.calibrate.replace("{gallery}", config.gallery))
        check_comparable(labelled, gallery, config.force)
    labels = metrics.encode_labels(labelled.writers)
    groups = groups_of(labelled, config.exclude_group)
    return calibrate(_whitened(fitted, labelled), labels, groups)


def _reading(calibration: Calibration | None, config: ConfigDict) -> str:
    if calibration is None:
        return (
            "No labelled set says how to read these distances (config.calibrate): they only order "
            "the pages."
        )
    where = config.calibrate.replace("{gallery}", config.gallery)
    return (
        f"Percentages say how many of the pairs at that distance were by one writer in {where}: "
        f"{calibration.same} of {calibration.counts.sum()} pairs of {calibration.pages} pages by "
        f"{calibration.writers} writers. In a collection with other writers, or more of them, they "
        "differ."
    )


def _write_json(
    path: Path,
    config: ConfigDict,
    queries: Embeddings,
    gallery: Embeddings,
    calibration: Calibration | None,
    reading: str,
) -> None:
    steps = []
    if calibration is not None:
        steps = [
            {"from": float(a), "to": float(b), "same_writer_share": float(s), "pairs": int(n)}
            for a, b, s, n in zip(
                calibration.edges, calibration.edges[1:], calibration.shares, calibration.counts
            )
        ]
    content = {
        "queries": queries.meta,
        "gallery": gallery.meta,
        "whitening": config.whitening or "none",
        "backend": config.backend,
        "exclude_group": config.exclude_group,
        "distance": tables.DEFINITIONS["distance"],
        "reading": reading,
        "calibration": steps,
    }
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
