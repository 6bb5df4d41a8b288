"""The head of the evaluation's report: figures, curves, hardest queries, writers, and the map."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.reports.evidence import Evidence
from saghog_jax.reports.projection import project
from saghog_jax.reports.sheets import Sheets, chosen, write_sheets
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
      results: rows of the table; sheets, writers, hardest queries and map are those of the last.
      ranking: of the last result.
      evidence: of some matches, by rows of query and match.
    """
    e = results[-1].evaluation
    scored = {int(row): i for i, row in enumerate(e.rows)}
    lonely = set(e.without_relevant.tolist())
    said = {}
    for row in range(len(pages)):
        if row in scored:
            i = scored[row]
            said[row] = {
                "ap": round(float(e.ap[i]), 4),
                "first": int(e.first[i]),
                "partners": int(e.relevant[i]),
            }
        else:
            unknown = f"{config.relevance} unknown"
            said[row] = {"why": "no partner in the collection" if row in lonely else unknown}
    known = {row for row, _ in evidence}
    order = chosen(hardness(e), len(pages), config.report.max_queries, known)
    points = _points(pages, results[-1].descriptors, config.report.map_pages)
    sheets = Sheets(pages, pages, ranking, order, said, points=points, evidence=evidence)
    head = [
        _facts(pages, results, ranking.labels, config),
        _figures(results) if e.rows.size else "",
        '<div class="columns">',
        _curve(results) if e.rows.size else "",
        _spread(e) if e.rows.size else "",
        _map(points, len(pages)),
        "</div>",
        _hardest(pages, e) if e.rows.size else "",
        _writers(per_label_rows(pages, e, ranking.labels, config.relevance), config.relevance),
    ]
    title = f"Retrieval: {pages.name}"
    return write_sheets(folder, "report", title, "\n".join(head), sheets, config.report)


def hardness(e: metrics.Evaluation) -> dict[int, float]:
    """Average precision of each query that has one, by row."""
    return {int(row): float(ap) for row, ap in zip(e.rows, e.ap, strict=True)}


def _facts(
    pages: Embeddings, results: Sequence[Result], labels: np.ndarray, config: ConfigDict
) -> str:
    known = labels[labels >= 0]
    excluded = f", except pages of the same {config.exclude_group}" if config.exclude_group else ""
    facts = [f"{len(pages)} pages"]
    if len(known):
        facts[0] += f", {len(known)} of a known {config.relevance}"
        facts[0] += f" ({len(np.unique(known))} {config.relevance}s)"
        facts.append(f"Every page of a known {config.relevance} asks, all others answer{excluded}")
    lonely = results[-1].figures["queries_without_partner"]
    if lonely:
        facts.append(f"{lonely} of them have no partner: they answer, but are not averaged")
    if not results[-1].figures["queries"]:
        why = "has a partner" if len(known) else f"has a known {config.relevance}"
        facts.append(f"No page {why}, so there are no figures: the sheets are the result")
    return f"<p>{html.escape('. '.join(facts))}.</p>"


def _figures(results: Sequence[Result]) -> str:
    ks = results[-1].evaluation.ks
    columns = {"map": "mAP", **{f"top{k}": f"Top-{k}" for k in ks}}
    columns |= {f"hard@{k}": f"hard@{k}" for k in ks if k > 1} | {"ndcg": "nDCG"}
    reranked = any(r.reranking != "none" for r in results)
    heads = ["descriptors", "whitening", *(["re-ranking"] if reranked else [])]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    head += "".join(f'<th scope="col" class="n">{name}</th>' for name in columns.values())
    rows = []
    for r in results:
        texts = [r.whitening, *([r.reranking] if reranked else [])]
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        for key in columns:
            interval = ""
            if key in r.intervals:
                low, high = r.intervals[key]
                interval = f' <small class="soft">{100 * low:.1f}–{100 * high:.1f}</small>'
            cells += f'<td class="n">{100 * r.figures[key]:.1f}{interval}</td>'
        rows.append(
            f'<tr><th scope="row">{html.escape(r.name)}</th>{cells}'
            f'<td class="n">{r.figures["queries"]}</td></tr>'
        )
    small = ", with 95 % intervals (bootstrap over labels)" if results[-1].intervals else ""
    return (
        f'<p class="soft">Figures in percent{small}. What follows is of the last row.</p>'
        f'<div class="scroll"><table id="figures"><thead><tr>{head}'
        f'<th scope="col" class="n">queries</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _curve(results: Sequence[Result]) -> str:
    """Share of queries with a partner among the first k, over k: one line a result."""
    longest = max(int(r.evaluation.gallery.max(initial=1)) for r in results)
    ks = np.unique(np.round(np.geomspace(1, max(2, longest), 60)).astype(int))
    left, top, width, height = 44, 8, 360, 220
    x = left + width * np.log(ks) / np.log(ks[-1])
    parts = []
    for share in (0, 25, 50, 75, 100):
        y = top + height * (1 - share / 100)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{width}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share}</text>')
    for k in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000):
        if k <= ks[-1]:
            at = left + width * np.log(k) / np.log(ks[-1])
            parts.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{k}')
            parts.append("</text>")
    # Of up to three lines the last, which all below is about, is the full one.
    first = max(0, 3 - len(results))
    for i, r in enumerate(results, start=first):
        y = top + height * (1 - (r.evaluation.first[:, None] <= ks).mean(0))
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline class="line l{i % 6}" points="{line}"/>')
    keys = "".join(
        f'<li><svg width="34" height="10" aria-hidden="true"><path class="line l{i % 6}" '
        f'd="M0 5h34"/></svg> {html.escape(_short(r))}</li>'
        for i, r in enumerate(results, start=first)
    )
    return (
        '<figure class="plot"><figcaption>Queries in percent that have a partner among the first '
        f'k pages</figcaption><svg viewBox="0 0 {left + width + 12} {top + height + 26}" '
        f'role="img" aria-label="curve">{"".join(parts)}</svg><ul class="keys">{keys}</ul></figure>'
    )


def _spread(e: metrics.Evaluation) -> str:
    """How many queries have which average precision, in ten bars."""
    counts = np.histogram(e.ap, bins=10, range=(0, 1))[0]
    left, top, width, height = 44, 20, 360, 208
    step, most = width / len(counts), int(counts.max())
    parts = []
    for i, count in enumerate(counts):
        tall = height * count / most
        x, y = left + i * step, top + height - tall
        parts.append(
            f'<rect class="bar-ap" x="{x + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" '
            f'height="{tall:.1f}"/><text x="{x + step / 2:.1f}" y="{y - 5:.1f}" '
            f'text-anchor="middle">{count or ""}</text>'
        )
    for percent in range(0, 101, 20):
        at = left + width * percent / 100
        parts.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{percent}')
        parts.append("</text>")
    parts.append(f'<path class="grid" d="M{left} {top + height}h{width}"/>')
    return (
        '<figure class="plot" id="spread"><figcaption>Queries by average precision in percent: '
        "a mean hides how they differ</figcaption>"
        f'<svg viewBox="0 0 {left + width + 12} {top + height + 26}" role="img" '
        f'aria-label="queries by average precision">{"".join(parts)}</svg></figure>'
    )


def _short(result: Result) -> str:
    done = [result.whitening.split(",")[0], result.reranking.split(" (")[0]]
    return " + ".join([result.name, *(word for word in done if word != "none")])


def _points(pages: Embeddings, descriptors: np.ndarray, at_most: int) -> list[dict]:
    if len(pages) < 3 or at_most < 3:
        return []
    count = min(len(pages), at_most)
    rows = np.floor(np.linspace(0, len(pages) - 1, count)).astype(int)
    return [
        {
            "row": int(row),
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "id": str(pages.page_ids[row]),
            "writer": str(pages.writers[row]),
        }
        for row, (x, y) in zip(rows, project(descriptors[rows]), strict=True)
    ]


def _map(points: Sequence[dict], total: int) -> str:
    if not points:
        return ""
    shown = "" if len(points) == total else f" ({len(points)} of {total} pages)"
    return (
        '<figure class="plot" id="map"><figcaption>Map of the collection'
        f"{shown}: pages that are near each other have similar descriptors. Point at one to see "
        "it and, filled, the others of its writer; click to go to its sheet.</figcaption>"
        '<div id="mapbox"><svg viewBox="0 0 420 260" role="group" tabindex="0" aria-label="map of '
        'the collection; arrow keys go from page to page, Enter to a sheet"></svg>'
        '<div id="maphint" aria-live="polite" hidden></div></div></figure>'
    )


def _hardest(pages: Embeddings, e: metrics.Evaluation) -> str:
    rows = []
    for i in np.argsort(e.ap, kind="stable")[:_HARDEST]:
        row, name = int(e.rows[i]), html.escape(str(pages.page_ids[e.rows[i]]))
        rows.append(
            f'<tr><th scope="row"><a href="#p{row}">{name}</a></th>'
            f"<td>{html.escape(str(pages.writers[row]))}</td>"
            f'<td class="n">{100 * e.ap[i]:.1f}</td><td class="n">{e.first[i]}</td></tr>'
        )
    return (
        "<details><summary>Hardest queries</summary>"
        '<div class="scroll"><table class="sortable" id="hardest"><thead><tr>'
        '<th scope="col">page</th><th scope="col">writer</th><th scope="col" class="n">AP</th>'
        '<th scope="col" class="n">nearest partner at rank</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _writers(rows: Sequence[tuple[str, dict]], relevance: str) -> str:
    if not rows:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="n">{f["queries"]}</td>'
        f'<td class="n">{100 * f["map"]:.1f}</td><td class="n">{100 * f["top1"]:.1f}</td></tr>'
        for name, f in rows
    )
    return (
        f"<details><summary>Figures of each {relevance} ({len(rows)})</summary>"
        '<div class="scroll"><table class="sortable" id="writers"><thead><tr>'
        f'<th scope="col">{relevance}</th><th scope="col" class="n">queries</th>'
        '<th scope="col" class="n">mAP</th><th scope="col" class="n">Top-1</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div></details>"
    )
