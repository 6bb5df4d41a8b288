"""The evidence of a retrieval: the pages of a few matches are cut and described again.

For each match it finds what every patch of the two pages contributes and which patches are similar
(match.py), and keeps both in `evidence/QUERY_RANK.npz` beside the results.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.embedding.encoder import (
    PageEncoder,
    encoder_of_embeddings,
    filled,
    recipe_of_embeddings,
)
from saghog_jax.evidence.match import DescribedPage, Evidence, match_evidence
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.whitening import Whitening

logger = logging.getLogger(__name__)

FOLDER = "evidence"
# Pages of the gallery that the mean descriptor is taken over, at most, and values held at a time.
_MEAN_PAGES = 10_000
_VALUES = 1 << 24
# Cosine below which the image counts as changed since it was embedded.
_SAME_PAGE = 0.99
# Fewer pages are cut in this process: starting others would take longer.
_FEW_PAGES = 4


@dataclass(frozen=True)
class Compared:
    """Pages that were compared, and the descriptors that ranked them (before re-ranking)."""

    queries: Embeddings
    gallery: Embeddings  # the same object where pages are compared among themselves
    query_descriptors: np.ndarray  # float32 [q, k]
    gallery_descriptors: np.ndarray  # float32 [p, k]
    whitening: Whitening | None
    ranking: Ranking


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
    encoder, reason = _encoder(compared, config.evidence.checkpoint)
    if encoder is None:
        logger.warning(f"note: no evidence in the report: {reason}")
        return {}
    logger.info(f"evidence: describing the pages of {len(matches)} matches again, patch by patch")
    pages = _Pages(compared, encoder, config.max_pixels)
    pages.read({row for row, _, _ in matches}, {other for _, other, _ in matches})
    mean = _mean(compared.gallery_descriptors)
    evidence: dict[tuple[int, int], Evidence] = {}
    for row, other, rank in matches:
        one = pages.evidence(row, other, mean, config.evidence.pairs)
        if one is not None:
            evidence[row, other] = one
            _save(folder / f"{row:05d}_{rank}.npz", one, compared, row, other)
    for name, problem in pages.failed.items():
        logger.warning(f"note: no evidence for {name}: {problem}")
    return evidence


def _mean(descriptors: np.ndarray) -> np.ndarray:
    """Mean of the unit rows [p, k]; of very many, of an even selection."""
    rows = np.unique(np.linspace(0, len(descriptors) - 1, _MEAN_PAGES).astype(int))
    step = max(1, _VALUES // descriptors.shape[1])
    parts = (descriptors[rows[i : i + step]] for i in range(0, len(rows), step))
    return sum(l2_normalize(part).sum(0) for part in parts) / np.float32(len(rows))


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


def _encoder(compared: Compared, checkpoint: str) -> tuple[PageEncoder | None, str]:
    """The encoder that made the embeddings, or why there is none.

    Raises:
      UserError: `checkpoint` is given and does not hold the model that made the embeddings.
    """
    for embeddings in (compared.queries, compared.gallery):
        try:
            recipe = recipe_of_embeddings(embeddings.meta, embeddings.folder)
        except UserError as error:
            return None, str(error)
        # With other poolings, and with whitened patches, a page is no sum of unit vectors.
        if recipe.pooling not in ("sum", "mean") or recipe.patch_whitening != "none":
            return None, "it needs pooling sum or mean, and no patch whitening"
    try:
        gallery = compared.gallery
        return encoder_of_embeddings(gallery.meta, gallery.folder, checkpoint), ""
    except UserError as error:
        if checkpoint:
            raise
        return None, f"{error} (config.report.evidence.checkpoint says where the model is)"


class _Pages:
    """The pages of the matches, described patch by patch."""

    def __init__(self, compared: Compared, encoder: PageEncoder, max_pixels: int) -> None:
        self._compared, self._encoder, self._max_pixels = compared, encoder, max_pixels
        self._described: dict[tuple[bool, int], DescribedPage] = {}
        self.failed: dict[str, str] = {}

    def _key(self, row: int, of_query: bool) -> tuple[bool, int]:
        return of_query and self._compared.queries is not self._compared.gallery, row

    def read(self, queries: Iterable[int], gallery: Iterable[int]) -> None:
        """Cuts and describes pages; the pages that fail go to `failed`."""
        keys = {self._key(r, True) for r in queries} | {self._key(r, False) for r in gallery}
        timer, finished = ProgressTimer(len(keys)), 0
        for of_query in sorted({of_query for of_query, _ in keys}):
            source = self._compared.queries if of_query else self._compared.gallery
            rows = sorted(row for is_query, row in keys if is_query == of_query)
            for row, page, cuts in self._cuts(source, rows):
                try:
                    self._described[of_query, row] = self._describe(source, row, page, cuts)
                except PageError as error:
                    self.failed[str(source.page_ids[row])] = str(error)
                finished += 1
                if progress := timer.due(finished):
                    eta = duration(progress.remaining)
                    logger.info(f"{finished:,} of {len(keys):,} pages described, about {eta} left")

    def _cuts(
        self, source: Embeddings, rows: Sequence[int]
    ) -> Iterator[tuple[int, Page, list[Cut | str]]]:
        """Yields the pages of some rows with their cuts, made as when they were embedded."""
        recipe = recipe_of_embeddings(source.meta, source.folder)
        root = source.folder / source.meta["pages_root"]
        pages = tuple(_page(source, row) for row in rows)
        regions = ConfigDict(dict(recipe.regions))
        masks = open_masks(Manifest(root, pages, ()), self._max_pixels, regions)
        stream = stream_cuts(
            root,
            pages,
            recipe.cutting_rule,
            self._max_pixels,
            1 if len(pages) < _FEW_PAGES else 0,
            masks.ensure(lambda line: None) if masks else None,
            scales=recipe.scales,
        )
        yield from zip(rows, pages, stream, strict=True)

    def _describe(
        self, source: Embeddings, row: int, page: Page, cuts: list[Cut | str]
    ) -> DescribedPage:
        factors = recipe_of_embeddings(source.meta, source.folder).factors(page.scale)
        described = DescribedPage(self._encoder, filled(cuts), factors)
        if described.descriptor @ np.asarray(source.descriptors[row]) < _SAME_PAGE:
            raise PageError("the image has changed since it was embedded")
        return described

    def evidence(self, row: int, other: int, mean: np.ndarray, pairs: int) -> Evidence | None:
        """The evidence of one match; None where one of its pages failed."""
        keys = self._key(row, True), self._key(other, False)
        if any(key not in self._described for key in keys):
            return None
        compared = self._compared
        descriptors = (
            l2_normalize(np.asarray(compared.query_descriptors[row])),
            l2_normalize(np.asarray(compared.gallery_descriptors[other])),
        )
        pages = self._described[keys[0]], self._described[keys[1]]
        return match_evidence(pages, descriptors, mean, compared.whitening, pairs)


def _page(source: Embeddings, row: int) -> Page:
    """The page of a row, without its labels."""
    extra = {"scale": str(source.table["scale"][row])} if "scale" in source.table else {}
    return Page(str(source.table["path"][row]), "", "", "", source.box(row), extra)


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
        "cosines": evidence.cosines,
        "query_side": evidence.query.side,
        "match_side": evidence.match.side,
    }
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)
