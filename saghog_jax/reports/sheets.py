"""Report files of result sheets: they open from disk, need no network, and hold their pictures.

Text from manifests reaches a file in two ways only: through `html.escape`, or as JSON whose `<` is
written as an escape and which the script shows as text, never as markup. Axis letters: q queries,
p pages, k ranks.
"""

import html
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.reports.evidence import Evidence, pictures
from saghog_jax.reports.thumbnails import thumbnails
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking


@dataclass(frozen=True)
class Sheets:
    """What the sheets show: queries, what they found, and what is said about them."""

    queries: Embeddings
    gallery: Embeddings  # the same object where pages are compared among themselves
    ranking: Ranking
    order: Sequence[int]  # the queries shown, by row
    said: Mapping[int, dict]  # of a query: `ap`, `first`, `partners`, or `why` there are none
    shares: np.ndarray | None = None  # [q, k] of same-writer pairs at that distance, NaN unknown
    points: list[dict] = field(default_factory=list)  # the map of the collection
    # Of some matches, by rows of query and gallery.
    evidence: Mapping[tuple[int, int], Evidence] = field(default_factory=dict)

    def key(self, row: int, of_query: bool) -> str:
        """Name of a page in the data of a file."""
        if self.queries is self.gallery:
            return f"p{row}"
        return f"q{row}" if of_query else f"g{row}"


def write_sheets(
    folder: Path, stem: str, title: str, head: str, sheets: Sheets, report: ConfigDict
) -> Path:
    """Writes STEM.html and, where there are many queries, STEM_2.html and so on.

    Args:
      folder: where to; originals are linked relative to it.
      head: HTML for the top of the first file.
      report: `saghog_jax.configs.retrieve.report_config`.

    Returns:
      the path of the first file.
    """
    per_file = report.queries_per_file
    parts = [sheets.order[i : i + per_file] for i in range(0, max(1, len(sheets.order)), per_file)]
    names = [f"{stem}.html", *(f"{stem}_{i}.html" for i in range(2, len(parts) + 1))]
    where = {row: name for name, part in zip(names, parts, strict=True) for row in part}
    for stale in set(folder.glob(f"{stem}_*.html")) - {folder / name for name in names}:
        stale.unlink()
    for name, part in zip(names, parts, strict=True):
        data = _data(folder, sheets, part, report)
        if name == names[0]:
            data["points"] = [{**p, "file": where.get(p["row"], "")} for p in sheets.points]
        body = [_missing_note(data["pages"]), _file_links(names, name, sheets)]
        with atomic_write(folder / name, "w") as file:
            file.write(_page(title, [head if name == names[0] else "", *body], data))
    return folder / names[0]


def chosen(
    hardness: Mapping[int, float], rows: int, at_most: int, also: Collection[int] = ()
) -> list[int]:
    """All queries in their order, those without figures last; of more than fit those of `also`,
    then those of the least `hardness`."""
    if rows <= at_most:
        return sorted(range(rows), key=lambda row: row not in hardness)
    order = sorted(range(rows), key=lambda row: (hardness.get(row, np.inf), row))
    return sorted(order, key=lambda row: row not in also)[:at_most]


def _data(folder: Path, sheets: Sheets, part: Sequence[int], report: ConfigDict) -> dict:
    asked, found, out = set(part), set(), []
    mine = {pair: e for pair, e in sheets.evidence.items() if pair[0] in asked}
    evidence: dict[str, dict] = {}
    for (row, other), shown in pictures(
        sheets.queries, sheets.gallery, mine, report.max_pixels
    ).items():
        evidence.setdefault(sheets.key(row, True), {})[sheets.key(other, False)] = shown
    for row in part:
        hits = []
        for i, (other, distance) in enumerate(sheets.ranking.hits(row)):
            found.add(other)
            share = None
            if sheets.shares is not None and not np.isnan(sheets.shares[row, i]):
                share = round(float(sheets.shares[row, i]), 4)
            mark = sheets.ranking.mark(row, other)
            hits.append([sheets.key(other, False), round(distance, 4), mark, share])
        out.append({"q": sheets.key(row, True), "row": row, "hits": hits, **sheets.said[row]})
    if sheets.queries is sheets.gallery:
        asked |= found
        found = set()
    pages = {}
    for rows, of_query in ((asked, True), (found, False)):
        source = sheets.queries if of_query else sheets.gallery
        # What evidence is shown on must be readable where the originals are not at hand.
        larger = {pair[0] for pair in mine} if of_query else {pair[1] for pair in mine}
        if sheets.queries is sheets.gallery:
            larger = {row for pair in mine for row in pair}
        made = thumbnails(source, rows - larger, report.thumbnail, report.max_pixels)
        made |= thumbnails(source, rows & larger, report.evidence.picture, report.max_pixels)
        for row in sorted(rows):
            pages[sheets.key(row, of_query)] = _about(folder, source, row) | made[row]
    return {"pages": pages, "sheets": out, "points": [], "evidence": evidence}


def _about(folder: Path, pages: Embeddings, row: int) -> dict:
    original = os.path.relpath(pages.image(row).resolve(), folder.resolve())
    about = {
        "id": str(pages.page_ids[row]),
        "writer": str(pages.writers[row]),
        "href": quote(Path(original).as_posix()),
    }
    box = pages.box(row)
    return about if box is None else about | {"box": box}


def _missing_note(pages: Mapping[str, Mapping]) -> str:
    missing = sum("missing" in page for page in pages.values())
    if not missing:
        return ""
    return (
        f'<p class="note" id="missing">The images of {missing} of the {len(pages)} pages shown '
        "here could not be read (moved, or damaged); their places say why.</p>"
    )


def _file_links(names: Sequence[str], current: str, sheets: Sheets) -> str:
    if len(names) == 1:
        return ""
    links = [
        f'<b aria-current="page">{i}</b>' if name == current else f'<a href="{name}">{i}</a>'
        for i, name in enumerate(names, start=1)
    ]
    total, shown = len(sheets.queries), len(sheets.order)
    order = "" if shown == total else f" (the hardest {shown} of {total} queries)"
    return f'<nav aria-label="parts of the report"><p>Part{order}: {" ".join(links)}</p></nav>'


def _page(title: str, body: Sequence[str], data: dict) -> str:
    assets = resources.files("saghog_jax.reports") / "assets"
    style = resources.files("saghog_jax.runs") / "assets" / "report.css"
    parts = {
        "title": html.escape(title),
        "style": style.read_text("utf-8"),
        "body": "\n".join(body),
        # `</script>` inside of a file name must not end the element.
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        "script": "\n".join(
            (assets / name).read_text("utf-8") for name in ("report.js", "compare.js", "map.js")
        ),
    }
    before, *rest = (assets / "report.html").read_text("utf-8").split("{{")
    out = [before]
    for piece in rest:
        name, text = piece.split("}}", 1)
        out += [parts[name], text]
    return "".join(out)
