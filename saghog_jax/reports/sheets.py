"""Report files of result sheets: they open from disk, need no network, and contain their pictures.

Names and labels of pages reach a file in two ways only: escaped by the template, or as JSON, which
cannot end its script element and which the script shows as text. Axis letters: q queries, p pages,
k ranks.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages.frames import file_of
from saghog_jax.reports.evidence import Evidence, pictures
from saghog_jax.reports.thumbnails import thumbnails
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.runs.templates import render

# Two pages whose descriptors are at most this distant are one image. Descriptors of one image
# differ by rounding; those of two images by one hand are a thousand times as distant.
_SAME_IMAGE = 1e-4
_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Head:
    """The top of the first report file.

    template: extends `sheets.html`.
    values: the variables of the template beyond those of `sheets.html`.
    """

    title: str
    paragraphs: Sequence[str]
    template: str = "sheets.html"
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheets:
    """The content of the sheets.

    gallery: the same object as `queries` if the pages of one collection are compared.
    order: the queries to show, by row.
    notes: for each query by row its `ap`, `first` (rank of the first relevant page) and `relevant`
      (number of relevant pages), or `why` there are no such figures.
    shares: [q, k], fraction of same-writer pairs at the distance of each match; NaN if unknown.
    points: the map of the collection.
    evidence: of some matches, by the rows of query and match.
    """

    queries: Embeddings
    gallery: Embeddings
    ranking: Ranking
    order: Sequence[int]
    notes: Mapping[int, dict]
    shares: np.ndarray | None = None
    points: list[dict] = field(default_factory=list)
    evidence: Mapping[tuple[int, int], Evidence] = field(default_factory=dict)

    @property
    def one_collection(self) -> bool:
        """Whether queries and gallery are the same pages."""
        return self.queries is self.gallery

    def key(self, row: int, of_query: bool) -> str:
        """The name of a page in the data of a file."""
        if self.one_collection:
            return f"p{row}"
        return f"q{row}" if of_query else f"g{row}"


def write_sheets(folder: Path, stem: str, head: Head, sheets: Sheets, report: ConfigDict) -> Path:
    """Writes STEM.html and, if there are many queries, STEM_2.html and so on.

    Args:
      folder: folder of the files; links to originals are relative to it.
      report: `saghog_jax.configs.retrieve.report_config`.

    Returns:
      the path of the first file.
    """
    per_file = report.queries_per_file
    parts = [sheets.order[i : i + per_file] for i in range(0, max(1, len(sheets.order)), per_file)]
    names = [f"{stem}.html", *(f"{stem}_{i}.html" for i in range(2, len(parts) + 1))]
    file_of = {row: name for name, part in zip(names, parts, strict=True) for row in part}
    for stale in set(folder.glob(f"{stem}_*.html")) - {folder / name for name in names}:
        stale.unlink()
    points = [{**point, "file": file_of.get(point["row"], "")} for point in sheets.points]
    total, shown = len(sheets.queries), len(sheets.order)
    for name, part in zip(names, parts, strict=True):
        first = name == names[0]
        data = _data(folder, sheets, part, report)
        page = render(
            head.template,
            _ASSETS,
            title=head.title,
            paragraphs=head.paragraphs,
            first=first,
            missing=sum("missing" in page for page in data["pages"].values()),
            links=names,
            name=name,
            selection="" if shown == total else f" (the hardest {shown} of {total} queries)",
            data=data | {"points": points if first else []},
            **head.values,
        )
        with atomic_write(folder / name, "w") as file:
            file.write(page)
    return folder / names[0]


def select_queries(
    hardness: Mapping[int, float], rows: int, limit: int, preferred: Collection[int] = ()
) -> list[int]:
    """Rows of the queries to show, in the order of the report.

    All queries are shown in their order, those without a hardness last. If there are more than
    `limit`, the preferred queries are shown first, then those with the lowest values.

    Args:
      hardness: for example the average precision of each query, by row; low values are hard.
      rows: number of queries.
    """
    if rows <= limit:
        return sorted(range(rows), key=lambda row: row not in hardness)
    order = sorted(range(rows), key=lambda row: (hardness.get(row, np.inf), row))
    return sorted(order, key=lambda row: row not in preferred)[:limit]


def _data(folder: Path, sheets: Sheets, part: Sequence[int], report: ConfigDict) -> dict:
    """The JSON data of one file, which shows the queries of `part`."""
    queries = set(part)
    evidence = {pair: e for pair, e in sheets.evidence.items() if pair[0] in queries}
    evidence_data: dict[str, dict] = {}
    for (row, other), shown in pictures(
        sheets.queries, sheets.gallery, evidence, report.max_pixels
    ).items():
        evidence_data.setdefault(sheets.key(row, True), {})[sheets.key(other, False)] = shown
    matches = {other for row in part for other, _ in sheets.ranking.hits(row)}
    # Evidence must be readable where the originals are missing, so its pages are shown larger.
    large_queries, large_matches = {row for row, _ in evidence}, {other for _, other in evidence}
    if sheets.one_collection:
        queries, matches = queries | matches, set()
        large_queries |= large_matches
    pages = {}
    for source, rows, large, of_query in (
        (sheets.queries, queries, large_queries, True),
        (sheets.gallery, matches, large_matches, False),
    ):
        images = thumbnails(source, rows - large, report.thumbnail, report.max_pixels)
        images |= thumbnails(source, rows & large, report.evidence.picture, report.max_pixels)
        for row in sorted(rows):
            pages[sheets.key(row, of_query)] = _describe_page(folder, source, row) | images[row]
    return {
        "pages": pages,
        "sheets": [_sheet(sheets, row) for row in part],
        "evidence": evidence_data,
    }


def _sheet(sheets: Sheets, row: int) -> dict:
    hits = []
    for i, (other, distance) in enumerate(sheets.ranking.hits(row)):
        share = None
        if sheets.shares is not None and not np.isnan(sheets.shares[row, i]):
            share = round(float(sheets.shares[row, i]), 4)
        mark = sheets.ranking.mark(row, other)
        same = same_image(sheets.queries, row, sheets.gallery, other)
        hits.append([sheets.key(other, False), round(distance, 4), mark, share, same])
    return {"q": sheets.key(row, True), "row": row, "hits": hits, **sheets.notes[row]}


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
    original = os.path.relpath(file_of(pages.image(row)).resolve(), folder.resolve())
    description = {
        "id": str(pages.page_ids[row]),
        "writer": str(pages.writers[row]),
        "href": quote(Path(original).as_posix()),
        "digest": pages.digests[row],
    }
    box = pages.box(row)
    return description if box is None else description | {"box": box}
