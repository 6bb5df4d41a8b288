"""The data of a report file: pages, ranked lists and evidence, as JSON that the scripts show.

Axis letters: q queries, p pages, k ranks.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.evidence.gather import mean_descriptor
from saghog_jax.input_pipeline.pages.frames import ending, file_of
from saghog_jax.reports.evidence import Evidence, pictures
from saghog_jax.reports.page_pictures import Shown
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking

# Two pages whose descriptors are at most this distant are one image. Descriptors of one image
# differ by rounding; those of two images by one hand are a thousand times as distant.
_SAME_IMAGE = 1e-4


@dataclass(frozen=True)
class Sheets:
    """The content of the sheets.

    gallery: the same object as `queries` if the pages of one collection are compared.
    order: the queries to show, by row.
    notes: for each query by row its `ap`, `first` (rank of the first relevant page) and `relevant`
      (number of relevant pages), or `why` there are no such figures.
    shares: [q, k], fraction of same-writer pairs at the distance of each match; NaN if unknown.
    average: the distance between each query, by row, and the average page of the gallery.
    points: the map of the collection.
    evidence: of some matches, by the rows of query and match.
    command: the command that made the report, to which fields of `report.evidence` are added.
    """

    queries: Embeddings
    gallery: Embeddings
    ranking: Ranking
    order: Sequence[int]
    notes: Mapping[int, dict]
    shares: np.ndarray | None = None
    average: Mapping[int, float] = field(default_factory=dict)
    points: list[dict] = field(default_factory=list)
    evidence: Mapping[tuple[int, int], Evidence] = field(default_factory=dict)
    command: str = ""

    @property
    def one_collection(self) -> bool:
        """Whether queries and gallery are the same pages."""
        return self.queries is self.gallery

    def key(self, row: int, of_query: bool) -> str:
        """The name of a page in the data of a file."""
        if self.one_collection:
            return f"p{row}"
        return f"q{row}" if of_query else f"g{row}"


def distances_to_average(
    queries: np.ndarray, order: Sequence[int], gallery: np.ndarray
) -> dict[int, float]:
    """The mean distance between each query of `order` and the pages of the gallery.

    Args:
      queries: descriptors [q, d] by row.
      gallery: descriptors [p, d].
    """
    mean = mean_descriptor(gallery)
    units = (l2_normalize(np.asarray(queries[row], np.float32)) for row in order)
    return {row: round(1 - float(unit @ mean), 4) for row, unit in zip(order, units, strict=True)}


def file_data(folder: Path, sheets: Sheets, part: Sequence[int], report: ConfigDict) -> dict:
    """The JSON data of one file, which shows the queries of `part`, without pictures of pages."""
    queries = set(part)
    evidence = {pair: e for pair, e in sheets.evidence.items() if pair[0] in queries}
    evidence_data: dict[str, dict] = {}
    for (row, other), shown in pictures(
        sheets.queries, sheets.gallery, evidence, report.max_pixels
    ).items():
        evidence_data.setdefault(sheets.key(row, True), {})[sheets.key(other, False)] = shown
    # Evidence of several queries is made by one command, which names all of them.
    proven = dict.fromkeys(str(sheets.queries.page_ids[row]) for row, _ in sheets.evidence)
    return {
        "pages": {
            page.key: _describe_page(folder, page.pages, page.row)
            for page in sorted(pages_shown(sheets, part), key=lambda page: (page.key[0], page.row))
        },
        "sheets": [_sheet(sheets, row) for row in part],
        "evidence": evidence_data,
        "proof": {
            "command": sheets.command,
            "matches": report.evidence.matches,
            "of": list(proven),
        },
        "one_collection": sheets.one_collection,
    }


def pages_shown(sheets: Sheets, part: Sequence[int]) -> list[Shown]:
    """The pages of one file, the most important first.

    Pages with evidence come first, then the queries with their nearest matches, then the second
    matches, and so on.
    """
    shown: dict[str, Shown] = {}

    def show(row: int, of_query: bool) -> None:
        key = sheets.key(row, of_query)
        shown.setdefault(key, Shown(key, sheets.queries if of_query else sheets.gallery, row))

    queries = set(part)
    for row, other in sheets.evidence:
        if row in queries:
            show(row, True)
            show(other, False)
    hits = {row: sheets.ranking.hits(row) for row in part}
    for rank in range(max(map(len, hits.values()), default=0) or 1):
        for row in part:
            show(row, True)
            if rank < len(hits[row]):
                show(hits[row][rank][0], False)
    return list(shown.values())


def _sheet(sheets: Sheets, row: int) -> dict:
    hits = []
    for i, (other, distance) in enumerate(sheets.ranking.hits(row)):
        share = None
        if sheets.shares is not None and not np.isnan(sheets.shares[row, i]):
            share = round(float(sheets.shares[row, i]), 4)
        mark = sheets.ranking.mark(row, other)
        same = same_image(sheets.queries, row, sheets.gallery, other)
        hits.append([sheets.key(other, False), round(distance, 4), mark, share, same])
    average = {"average": sheets.average[row]} if row in sheets.average else {}
    return {"q": sheets.key(row, True), "row": row, "hits": hits, **average, **sheets.notes[row]}


def same_image(queries: Embeddings, row: int, gallery: Embeddings, other: int) -> bool:
    """Whether two pages have the descriptors of one image, as a copy of a file has.

    The descriptors are compared as they were embedded, without whitening and re-ranking.
    """
    a, b = (
        l2_normalize(np.asarray(pages.descriptors[i], np.float32))
        for pages, i in ((queries, row), (gallery, other))
    )
    return bool(a @ b > 1 - _SAME_IMAGE)


def _describe_page(folder: Path, pages: Embeddings, row: int) -> dict:
    image = pages.image(row)
    original = os.path.relpath(file_of(image).resolve(), folder.resolve())
    description = {
        "id": str(pages.page_ids[row]),
        "writer": str(pages.writers[row]),
        "href": quote(Path(original).as_posix()),
        "digest": pages.digests[row],
        # Whether a browser shows the page when it opens the file: not an image of several, nor a
        # turned one.
        "plain": not ending(image.name),
    }
    box = pages.box(row)
    return description if box is None else description | {"box": box}
