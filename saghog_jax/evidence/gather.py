"""The evidence of a retrieval: the pages of a few matches are cut and described again.

For each match it finds what every patch of the two pages contributes and which patches are similar
(match.py), and keeps both in `evidence/QUERY_RANK.npz` beside the results.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.evidence.records import Compared, Evidence
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings

logger = logging.getLogger(__name__)

FOLDER = "evidence"
_NO_EVIDENCE = "note: no evidence in the report"
# Pages of the gallery that the mean descriptor is taken over, at most, and values held at a time.
_MEAN_PAGES = 10_000
_VALUES = 1 << 24


def gather(
    compared: Compared, order: Sequence[int], config: ConfigDict, workdir: Path
) -> dict[tuple[int, int], Evidence]:
    """Evidence for the first matches of some queries, by rows of query and gallery.

    Args:
      order: queries, the most interesting first.
      config: the section `report`.
      workdir: the arrays go to its folder `evidence`, which is emptied first.

    Returns:
      an empty dictionary if evidence is off, or if the model does not exist any more (a message
      says so).

    Raises:
      UserError: `evidence.of` names a page that is not among the queries, or
        `evidence.checkpoint` is not the model that made the embeddings.
    """
    folder = workdir / FOLDER
    for stale in folder.glob("*.npz"):
        stale.unlink()
    queries = _chosen_queries(compared.queries, order, config.evidence)
    matches = [
        (row, other, rank)
        for row in queries
        for rank, (other, _) in enumerate(compared.ranking.hits(row), start=1)
        if rank <= config.evidence.matches
    ]
    if not matches:
        return {}
    for embeddings in (compared.queries, compared.gallery):
        if "recipe" not in embeddings.meta:
            no_recipe = f"meta.json of {embeddings.folder} has no recipe"
            logger.warning(f"{_NO_EVIDENCE}: {no_recipe}: it was not written by embed")
            return {}
    # Imported late: it loads jax and the models, which a retrieval without evidence does not need.
    from saghog_jax.evidence.described_pages import Pages, encoder_of

    encoder, reason = encoder_of(compared, config.evidence.checkpoint)
    if encoder is None:
        logger.warning(f"{_NO_EVIDENCE}: {reason}")
        return {}
    logger.info(f"evidence: describing the pages of {len(matches)} matches again, patch by patch")
    pages = Pages(compared, encoder, config.max_pixels)
    pages.read({row for row, _, _ in matches}, {other for _, other, _ in matches})
    mean = mean_descriptor(compared.gallery_descriptors)
    evidence: dict[tuple[int, int], Evidence] = {}
    for row, other, rank in matches:
        one = pages.evidence(row, other, mean, config.evidence.pairs)
        if one is not None:
            evidence[row, other] = one
            _save(folder / f"{row:05d}_{rank}.npz", one, compared, row, other)
    for name, problem in pages.failed.items():
        logger.warning(f"note: no evidence for {name}: {problem}")
    return evidence


def mean_descriptor(descriptors: np.ndarray) -> np.ndarray:
    """Mean of the unit rows [p, k], float32 [k]; of more than 10,000, of an even selection."""
    rows = np.unique(np.linspace(0, len(descriptors) - 1, _MEAN_PAGES).astype(int))
    step = max(1, _VALUES // descriptors.shape[1])
    parts = (descriptors[rows[i : i + step]] for i in range(0, len(rows), step))
    units = (l2_normalize(np.asarray(part, np.float32)) for part in parts)
    return sum(unit.sum(0) for unit in units) / np.float32(len(rows))


def _chosen_queries(queries: Embeddings, order: Sequence[int], config: ConfigDict) -> list[int]:
    for name in ("queries", "matches", "pairs"):
        if config[name] < 0:
            raise UserError(f"config.report.evidence.{name}={config[name]}: at least 0")
    if not config.of:
        return list(order[: config.queries])
    rows = {str(name): row for row, name in enumerate(queries.page_ids)}
    unknown = [name for name in config.of if name not in rows]
    if unknown:
        raise UserError(
            f"config.report.evidence.of names {unknown[0]!r}, which is no page of {queries.folder}"
        )
    return [rows[name] for name in config.of]


def _save(path: Path, evidence: Evidence, compared: Compared, row: int, other: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: Mapping[str, np.ndarray] = {
        "query": np.array(str(compared.queries.page_ids[row])),
        "match": np.array(str(compared.gallery.page_ids[other])),
        "similarity": np.float32(evidence.similarity),
        "query_mean": np.float32(evidence.query.mean),
        "match_mean": np.float32(evidence.match.mean),
        "query_place": evidence.query.place,
        "match_place": evidence.match.place,
        "query_contributions": evidence.query.contributions,
        "match_contributions": evidence.match.contributions,
        "pairs": evidence.pairs,
        "alike": evidence.alike,
        "query_side": evidence.query.side,
        "match_side": evidence.match.side,
    }
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)
