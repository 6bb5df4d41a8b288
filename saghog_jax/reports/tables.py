"""The tables of an evaluation: metrics.json, per_query.csv, ranking.csv, and on the screen."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.embeddings import Embeddings
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.results import Result

DEFINITIONS = {
    "protocol": "leave one page out: a query is a labelled page, its gallery all other pages",
    "self": "removed by page_id",
    "ap": "mean over the relevant pages of j / rank of the j-th, equal distances by row",
    "distance": "1 - cosine similarity (orders as Euclidean distance on unit vectors)",
    "intervals": "95 %, percentiles of a bootstrap over labels",
}
CORRECT = {"right": "1", "wrong": "0", "unknown": ""}


def _mark_encoding(file: IO[str], *collections: Embeddings) -> None:
    """Begins a table with a byte-order mark if names have letters beyond ASCII.

    Without the mark, spreadsheets read such letters in another encoding.
    """
    columns = (texts for pages in collections for texts in (pages.page_ids, pages.writers))
    if not all(text.isascii() for texts in columns for text in texts.tolist()):
        file.write("\ufeff")


def write_per_query(path: Path, pages: Embeddings, e: metrics.Evaluation) -> None:
    """Writes one line a page; `status` is `scored`, `no partner` or `no label`.

    The status `no partner` means that the gallery has no relevant page.
    """
    with atomic_write(path, "w") as file:
        _mark_encoding(file, pages)
        writer = csv.writer(file, lineterminator="\n")
        hits = [f"hits@{k}" for k in e.ks]
        header = ["query", "writer", "page", "status", "relevant", "gallery", "ap", "ndcg"]
        writer.writerow([*header, "first_rank", *hits])
        scored = {int(row): i for i, row in enumerate(e.rows)}
        without_relevant = set(e.without_relevant.tolist())
        for row in range(len(pages)):
            names = [pages.page_ids[row], pages.writers[row], pages.pages[row]]
            i = scored.get(row)
            if i is None:
                status = "no partner" if row in without_relevant else "no label"
                writer.writerow([*names, status, *[""] * (5 + len(hits))])
                continue
            figures = [e.relevant[i], e.gallery[i], f"{e.ap[i]:.6f}", f"{e.ndcg[i]:.6f}"]
            writer.writerow([*names, "scored", *figures, e.first[i], *e.hits[i]])


def write_ranking(
    path: Path,
    queries: Embeddings,
    gallery: Embeddings,
    ranking: Ranking,
    shares: np.ndarray | None = None,
) -> None:
    """Writes the nearest pages of every query; `correct` is 1, 0, or empty for unknown labels.

    Args:
      shares: [q, k], fraction of same-writer pairs at the distance of each match. Adds the column
        `same_writer_share`, which is empty for NaN.
    """
    with atomic_write(path, "w") as file:
        _mark_encoding(file, queries, gallery)
        writer = csv.writer(file, lineterminator="\n")
        header = ["query", "rank", "page", "writer", "distance", "correct"]
        writer.writerow(header if shares is None else [*header, "same_writer_share"])
        for row in range(len(queries)):
            for i, (other, distance) in enumerate(ranking.hits(row)):
                line = [queries.page_ids[row], i + 1, gallery.page_ids[other]]
                line += [gallery.writers[other], f"{distance:.6f}"]
                line.append(CORRECT[ranking.mark(row, other)])
                if shares is not None:
                    line.append("" if np.isnan(shares[row, i]) else f"{shares[row, i]:.4f}")
                writer.writerow(line)


def write_metrics(
    path: Path, config: ConfigDict, main: Embeddings, results: Sequence[Result], labels: np.ndarray
) -> None:
    """Writes all metrics, their definitions, and the metrics of each label of the last result."""
    content = {
        "definitions": {
            **DEFINITIONS,
            "relevance": config.relevance,
            "exclude_group": config.exclude_group,
            "convention": config.convention,
        },
        "embeddings": main.meta,
        "results": [
            {
                "name": r.name,
                "whitening": r.whitening,
                "reranking": r.reranking,
                **r.figures,
                "intervals": r.intervals,
            }
            for r in results
        ],
        f"per_{config.relevance}": dict(
            per_label_rows(main, results[-1].evaluation, labels, config.relevance)
        ),
    }
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def per_label_rows(
    pages: Embeddings, evaluation: metrics.Evaluation, labels: np.ndarray, relevance: str
) -> list[tuple[str, dict[str, float | int]]]:
    """Name and metrics of each label (writer or page) with queries, lowest mAP first."""
    first = dict(zip(labels[::-1].tolist(), range(len(labels) - 1, -1, -1), strict=True))
    rows = []
    for code, figures in metrics.per_label(evaluation, labels).items():
        row = first[code]
        name = str(pages.writers[row])
        rows.append((f"{name} / {pages.pages[row]}" if relevance == "page" else name, figures))
    return sorted(rows, key=lambda item: (item[1]["map"], item[0]))


def describe(results: Sequence[Result], labels: np.ndarray) -> list[str]:
    """Lines for the screen: remarks about labels, and the aligned table of metrics."""
    known, figures = labels[labels >= 0], results[-1].figures
    lines = []
    if not len(known):
        lines.append("no page has a label: ranking and report are written, without metrics")
    elif not figures["queries"]:
        lines.append("no page has a relevant page: ranking and report are written, without metrics")
    elif len(known) == len(labels) and (known == known[0]).all():
        lines.append(
            "all pages have the same label: every ranking is correct, whatever the descriptors"
        )
    if figures["queries"]:
        lines += _table(results)
    if figures["queries"] and figures["queries_without_partner"]:
        without_relevant = figures["queries_without_partner"]
        lines.append(f"{without_relevant} labelled pages have no relevant page and are not queries")
    return lines


def _table(results: Sequence[Result]) -> list[str]:
    ks = results[-1].evaluation.ks
    top = f"top{min(ks)}"
    rows = [("name", "whitening", "re-ranking", "mAP", "95 %", f"Top-{min(ks)}", "queries")]
    for r in results:
        low, high = r.intervals.get("map", (np.nan, np.nan))
        interval = "" if np.isnan(low) else f"{low:.3f}-{high:.3f}"
        figures = (f"{r.figures['map']:.3f}", interval, f"{r.figures[top]:.3f}")
        rows.append((r.name, r.whitening, r.reranking, *figures, str(r.figures["queries"])))
    # The column of re-ranking is left out if no row is re-ranked.
    shown = [i for i in range(7) if i != 2 or any(r.reranking != "none" for r in results)]
    widths = {i: max(len(row[i]) for row in rows) for i in shown}
    return [
        "  ".join(row[i].ljust(widths[i]) if i < 3 else row[i].rjust(widths[i]) for i in shown)
        for row in rows
    ]
