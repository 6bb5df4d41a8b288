"""The report of an evaluation: metrics, plots, hardest queries, writers, and the result sheets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.reports import plots
from saghog_jax.reports.evidence import Evidence
from saghog_jax.reports.sheets import Head, Sheets, select_queries, write_sheets
from saghog_jax.reports.tables import per_label_rows
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.results import Result

_HARDEST = 10


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
    sheets = Sheets(pages, pages, ranking, order, notes, points=points, evidence=evidence)
    evaluated = evaluation.rows.size > 0
    shown = "" if len(points) == len(pages) else f" ({len(points)} of {len(pages)} pages)"
    head = Head(
        f"Retrieval: {pages.name}",
        [_summary(pages, results[-1], ranking.labels, config)],
        "evaluation.html",
        {
            "figures": _figures(results) if evaluated else None,
            "curve": plots.curve(results) if evaluated else None,
            "spread": plots.spread(evaluation) if evaluated else None,
            "map_selection": shown if points else None,
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
    notes = {row: {"why": f"{relevance} unknown"} for row in range(rows)}
    notes |= {
        row: {"why": "no relevant page in the collection"}
        for row in evaluation.without_relevant.tolist()
    }
    for i, row in enumerate(evaluation.rows.tolist()):
        notes[row] = {
            "ap": round(float(evaluation.ap[i]), 4),
            "first": int(evaluation.first[i]),
            "relevant": int(evaluation.relevant[i]),
        }
    return notes


def _summary(pages: Embeddings, result: Result, labels: np.ndarray, config: ConfigDict) -> str:
    known = labels[labels >= 0]
    excluded = f", except pages of the same {config.exclude_group}" if config.exclude_group else ""
    facts = [f"{len(pages)} pages"]
    if len(known):
        facts[0] += f", {len(known)} of a known {config.relevance}"
        facts[0] += f" ({len(np.unique(known))} {config.relevance}s)"
        facts.append(
            f"Every page of a known {config.relevance} is a query; all other pages are its gallery"
            f"{excluded}"
        )
    without_relevant = result.figures["queries_without_partner"]
    if without_relevant:
        facts.append(
            f"{without_relevant} of them have no relevant page: they are in the gallery, but "
            "not averaged"
        )
    if not result.figures["queries"]:
        why = "has a relevant page" if len(known) else f"has a known {config.relevance}"
        facts.append(f"No page {why}, so there are no metrics: the sheets are the result")
    return f"{'. '.join(facts)}."


def _figures(results: Sequence[Result]) -> dict:
    """The table of metrics: `texts` and `numbers` name its columns."""
    ks = results[-1].evaluation.ks
    metric_names = {"map": "mAP", **{f"top{k}": f"Top-{k}" for k in ks}}
    metric_names |= {f"hard@{k}": f"hard@{k}" for k in ks if k > 1} | {"ndcg": "nDCG"}
    reranked = any(r.reranking != "none" for r in results)
    return {
        "remark": (
            ", with 95 % intervals (bootstrap over labels)" if results[-1].intervals else ""
        ),
        "texts": ["descriptors", "whitening", *(["re-ranking"] if reranked else [])],
        "numbers": [*metric_names.values(), "queries"],
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
