"""The report of an evaluation: metrics, plots, hardest queries, writers, and the result sheets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.reports import plots
from saghog_jax.reports.commands import command_of
from saghog_jax.reports.evidence import Evidence
from saghog_jax.reports.sheet_data import Sheets, distances_to_average
from saghog_jax.reports.sheets import Head, select_queries, title_of, write_sheets
from saghog_jax.reports.tables import per_label_rows
from saghog_jax.reports.words import LANGUAGE, speaker, words_of
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.results import Result

_HARDEST = 10
_SAY = speaker(words_of(LANGUAGE))
# Fields of `retrieve` that decide its ranking.
_FIELDS = (
    *("embeddings", "relevance", "exclude_group", "convention", "whitening", "rerank", "force"),
    "top_k",
)


def write(
    folder: Path,
    pages: Embeddings,
    results: Sequence[Result],
    ranking: Ranking,
    config: ConfigDict,
    evidence: Mapping[tuple[int, int], Evidence],
) -> Path:
    """Writes report.html (and its further parts) and returns its path.

    Args:
      results: rows of the table of metrics; everything below the table is about the last one.
      ranking: of the last result.
      evidence: of some matches, by the rows of query and match.
    """
    evaluation = results[-1].evaluation
    notes = _notes(evaluation, len(pages), config.relevance)
    preferred = {row for row, _ in evidence}
    limit = config.report.max_queries
    order = select_queries(hardness(evaluation), len(pages), limit, preferred)
    points = plots.map_points(pages, results[-1].descriptors, config.report.map_pages)
    # Re-ranking changes what a distance is.
    plain = results[-1].reranking == "none"
    x = results[-1].descriptors
    sheets = Sheets(
        pages,
        pages,
        ranking,
        order,
        notes,
        average=distances_to_average(x, order, x) if plain else {},
        points=points,
        evidence=evidence,
        command=command_of(config, _FIELDS, folder),
    )
    evaluated = evaluation.rows.size > 0
    some = len(points) != len(pages)
    shown = _SAY("map.selection", shown=len(points), n=len(pages)) if some else ""
    head = Head(
        title_of(config.report, pages),
        [_summary(pages, results[-1], ranking.labels, config)],
        "evaluation.html",
        {
            "figures": _figures(results) if evaluated else None,
            "curve": plots.curve(results) if evaluated else None,
            "spread": plots.spread(evaluation) if evaluated else None,
            "map_selection": shown if points else None,
            "some_writers": any(point["writer"] for point in points),
            "hardest": _hardest(pages, evaluation),
            "relevance": config.relevance,
            "labels": per_label_rows(pages, evaluation, ranking.labels, config.relevance),
        },
    )
    return write_sheets(folder, "report", head, sheets, config.report)


def hardness(evaluation: metrics.Evaluation) -> dict[int, float]:
    """The average precision of each evaluated query, by row."""
    return {int(row): float(ap) for row, ap in zip(evaluation.rows, evaluation.ap, strict=True)}


def _notes(evaluation: metrics.Evaluation, rows: int, relevance: str) -> dict[int, dict]:
    """The text data of each page as a query, by row, as `Sheets` takes it."""
    # Where no label is known, no page needs the reason why it has no figures.
    evaluated = evaluation.rows.size or evaluation.without_relevant.size
    why = {"why": _SAY(f"unknown.{relevance}")} if evaluated else {}
    notes = dict.fromkeys(range(rows), why)
    notes |= {row: {"why": _SAY("why.no_relevant")} for row in evaluation.without_relevant.tolist()}
    for i, row in enumerate(evaluation.rows.tolist()):
        notes[row] = {
            "ap": round(float(evaluation.ap[i]), 4),
            "first": int(evaluation.first[i]),
            "relevant": int(evaluation.relevant[i]),
        }
    return notes


def _summary(pages: Embeddings, result: Result, labels: np.ndarray, config: ConfigDict) -> str:
    known, relevance = labels[labels >= 0], config.relevance
    group = config.exclude_group
    excluded = _SAY("summary.except", group=group) if group else ""
    facts = [_SAY("summary.model", model=pages.name)]
    if len(known):
        values = {"n": len(known), "all": len(pages), "labels": len(np.unique(known))}
        facts.append(_SAY(f"summary.known.{relevance}", **values))
        facts.append(_SAY(f"summary.queries.{relevance}", excluded=excluded))
    without_relevant = result.figures["queries_without_partner"]
    if without_relevant:
        facts.append(_SAY("summary.without", n=without_relevant))
    if not result.figures["queries"]:
        facts.append(_SAY("summary.no_relevant" if len(known) else f"summary.no_{relevance}"))
    return " ".join(facts)


def _figures(results: Sequence[Result]) -> dict:
    """The table of metrics: `texts` and `numbers` name its columns."""
    ks = results[-1].evaluation.ks
    metric_names = {"map": "mAP", **{f"top{k}": f"Top-{k}" for k in ks}}
    metric_names |= {f"hard@{k}": f"hard@{k}" for k in ks if k > 1} | {"ndcg": "nDCG"}
    reranked = any(r.reranking != "none" for r in results)
    return {
        "remark": _SAY("figures.intervals") if results[-1].intervals else "",
        "texts": [
            _SAY(f"figures.{column}")
            for column in ("descriptors", "whitening", *(["reranking"] if reranked else []))
        ],
        "numbers": [*metric_names.values(), _SAY("figures.queries")],
        "rows": [
            {
                "name": r.name,
                "texts": [r.whitening, *([r.reranking] if reranked else [])],
                "metrics": [(r.figures[key], r.intervals.get(key)) for key in metric_names],
                "queries": r.figures["queries"],
            }
            for r in results
        ],
    }


def _hardest(pages: Embeddings, evaluation: metrics.Evaluation) -> list[dict]:
    hardest = np.argsort(evaluation.ap, kind="stable")[:_HARDEST]
    return [
        {
            "row": int(evaluation.rows[i]),
            "page": str(pages.page_ids[evaluation.rows[i]]),
            "writer": str(pages.writers[evaluation.rows[i]]),
            "ap": evaluation.ap[i],
            "first": int(evaluation.first[i]),
        }
        for i in hardest
    ]
