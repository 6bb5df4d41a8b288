"""The pages of matches, described again patch by patch by the encoder that embedded them."""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.embedding.encoder import (
    PageEncoder,
    encoder_of_embeddings,
    filled,
    recipe_of_embeddings,
)
from saghog_jax.evidence.match import DescribedPage, match_evidence
from saghog_jax.evidence.records import Compared, Evidence
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.input_pipeline.errors import PageError, UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.progress import ProgressTimer, duration
from saghog_jax.input_pipeline.regions.masks import open_masks
from saghog_jax.input_pipeline.store.stream import stream_cuts
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings

logger = logging.getLogger(__name__)

# Cosine below which the image counts as changed since it was embedded.
_SAME_PAGE = 0.99
# Fewer pages are cut in this process: starting others would take longer.
_FEW_PAGES = 4


def encoder_of(compared: Compared, checkpoint: str) -> tuple[PageEncoder | None, str]:
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


class Pages:
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
            colours=self._encoder.reads_colours,
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
            l2_normalize(np.asarray(compared.query_descriptors[row], np.float32)),
            l2_normalize(np.asarray(compared.gallery_descriptors[other], np.float32)),
        )
        pages = self._described[keys[0]], self._described[keys[1]]
        return match_evidence(pages, descriptors, mean, compared.whitening, pairs)


def _page(source: Embeddings, row: int) -> Page:
    """The page of a row, without its labels."""
    extra = {"scale": str(source.table["scale"][row])} if "scale" in source.table else {}
    return Page(str(source.table["path"][row]), "", "", "", source.box(row), extra)
