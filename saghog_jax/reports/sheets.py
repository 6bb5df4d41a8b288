"""Report files of result sheets: they open from disk, need no network, and contain their pictures.

Names and labels of pages reach a file in two ways only: escaped by the template, or as JSON, which
cannot end its script element and which the script shows as text.
"""

import datetime
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.reports.page_pictures import COLOUR, SMALL_INK, Fit, page_pictures
from saghog_jax.reports.sheet_data import Sheets, file_data, pages_shown
from saghog_jax.reports.words import LANGUAGE, speaker, words_of
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.runs.templates import render

logger = logging.getLogger(__name__)

_ASSETS = Path(__file__).parent / "assets"
# Names of folders that say nothing about a collection: the folder above is named too.
_PLAIN_NAMES = ("pages", "images", "scans", "img", "data")
# Bytes of the notes that a file gets after its size was counted.
_NOTES = 2000


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


def write_sheets(folder: Path, stem: str, head: Head, sheets: Sheets, report: ConfigDict) -> Path:
    """Writes STEM.html and, if there are many queries, STEM_2.html and so on.

    Each file is complete in itself, and has at most `report.max_mb` megabytes.

    Args:
      folder: folder of the files; links to originals are relative to it.
      report: `saghog_jax.configs.retrieve.report_config`.

    Returns:
      the path of the first file.

    Raises:
      UserError: `report` has a size that is not above 0.
    """
    words = words_of(LANGUAGE)
    say = speaker(words)
    per_file = report.queries_per_file
    parts = [sheets.order[i : i + per_file] for i in range(0, max(1, len(sheets.order)), per_file)]
    names = [f"{stem}.html", *(f"{stem}_{i}.html" for i in range(2, len(parts) + 1))]
    file_of = {row: name for name, part in zip(names, parts, strict=True) for row in part}
    for stale in set(folder.glob(f"{stem}_*.html")) - {folder / name for name in names}:
        stale.unlink()
    points = [{**point, "file": file_of.get(point["row"], "")} for point in sheets.points]
    total, shown = len(sheets.queries), len(sheets.order)
    selection = "" if shown == total else say("parts.selection", shown=shown, n=total)
    for name, part in zip(names, parts, strict=True):
        first = name == names[0]
        data = file_data(folder, sheets, part, report)
        data |= {"points": points if first else [], "words": words}
        page = {
            "title": head.title,
            "paragraphs": head.paragraphs,
            "first": first,
            "links": names,
            "name": name,
            "selection": selection,
            "say": say,
            **head.values,
        }
        written = render(head.template, _ASSETS, **page, data=data, missing=0, pictures="")
        pictures, fit = page_pictures(
            pages_shown(sheets, part), report, len(written.encode()) + _NOTES
        )
        for key, picture in pictures.items():
            data["pages"][key] |= picture
        missing = sum("missing" in picture for picture in pictures.values())
        remark = _remark(fit, report, say)
        if remark:
            logger.info(f"{name}: {remark}")
        with atomic_write(folder / name, "w") as file:
            file.write(
                render(head.template, _ASSETS, **page, data=data, missing=missing, pictures=remark)
            )
    return folder / names[0]


def _remark(fit: Fit, report: ConfigDict, say: Callable[..., str]) -> str:
    """What was done to keep a file below `report.max_mb`; empty for nothing."""
    done = []
    if fit.half:
        done.append(say("fit.half"))
    elif fit.large and fit.form != COLOUR:
        done.append(say("fit.small_ink" if fit.form == SMALL_INK else "fit.ink"))
    if fit.wanted and not fit.large:
        done.append(say("fit.none"))
    elif fit.large < fit.wanted:
        done.append(say("fit.first", n=fit.large, all=fit.wanted))
    if not fit.fits:
        done.append(say("fit.over"))
    return " ".join([say("fit.why", mb=f"{report.max_mb:g}"), *done]) if done else ""


def title_of(report: ConfigDict, pages: Embeddings) -> str:
    """The title of a report about one collection: its name, its pages, and the date."""
    say = speaker(words_of(LANGUAGE))
    name = report.title or collection_name(pages)
    return say("title.collection", name=name, n=len(pages), date=today())


def title_of_search(report: ConfigDict, queries: Embeddings, gallery: Embeddings) -> str:
    """The title of a report about a search."""
    say = speaker(words_of(LANGUAGE))
    names = report.title or collection_name(queries), collection_name(gallery)
    values = {"name": names[0], "n": len(queries), "gallery": names[1], "all": len(gallery)}
    return say("title.search", **values, date=today())


def collection_name(pages: Embeddings) -> str:
    """The name of the folder in which the pages of a collection lie."""
    root = (pages.folder / pages.meta.get("pages_root", "")).resolve()
    plain = root.name.lower() in _PLAIN_NAMES and root.parent.name
    return f"{root.parent.name}/{root.name}" if plain else root.name or str(root)


def today() -> str:
    """The date as year-month-day."""
    return datetime.date.today().isoformat()


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
