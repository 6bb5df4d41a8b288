"""report.html: figures, result sheets and tables in files that open from disk, without a network.

Text from manifests reaches the page in two ways only: through `html.escape`, or as JSON whose `<`
is written as an escape and which the script shows as text, never as markup.
"""

import html
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.retrieval import metrics
from saghog_jax.retrieval.embeddings import Embeddings, replacing
from saghog_jax.retrieval.ranking import Ranking
from saghog_jax.retrieval.thumbnails import thumbnails


class Figures(Protocol):
    """One row of the table of figures."""

    name: str
    protocol: str
    evaluation: metrics.Evaluation
    figures: dict[str, float | int]


def write_report(
    folder: Path,
    pages: Embeddings,
    results: Sequence[Figures],
    ranking: Ranking,
    config: ConfigDict,
) -> Path:
    """Writes `report.html` and, for large collections, `report_2.html`...

    Args:
      folder: where it is written; originals are linked relative to it.
      results: rows of the table; the sheets, tables and hardest queries are those of the last.
      ranking: of the last result.
      config: `report`, `relevance`, `exclude_group` (configs/retrieve.py).

    Returns:
      the path of the first file.
    """
    evaluation = results[-1].evaluation
    queries = _chosen(evaluation, len(pages), config.report.max_queries)
    per_file = config.report.queries_per_file
    parts = [queries[start : start + per_file] for start in range(0, len(queries), per_file)]
    names = ["report.html", *(f"report_{i}.html" for i in range(2, len(parts) + 1))]
    for stale in folder.glob("report_*.html"):
        stale.unlink()
    for name, part in zip(names, parts, strict=True):
        data = _sheet_data(folder, pages, evaluation, ranking, part, config)
        missing = sum("missing" in page for page in data["pages"].values())
        body = [
            _summary(pages, results, ranking, config, missing, len(data["pages"])),
            _file_links(names, name, len(queries), len(pages)),
            _writers_table(pages, evaluation, ranking.labels, config.relevance),
        ]
        with replacing(folder / name, "w") as file:
            file.write(_page(f"Retrieval of {pages.name}", body, data))
    return folder / "report.html"


def _chosen(evaluation: metrics.Evaluation, p: int, at_most: int) -> list[int]:
    # All pages in their order; of more than fit the hardest queries, then the others.
    if p <= at_most:
        return list(range(p))
    hardest = evaluation.rows[np.argsort(evaluation.ap, kind="stable")]
    others = np.setdiff1d(np.arange(p), hardest)
    return np.concatenate([hardest, others])[:at_most].tolist()


def _sheet_data(
    folder: Path,
    pages: Embeddings,
    evaluation: metrics.Evaluation,
    ranking: Ranking,
    queries: Sequence[int],
    config: ConfigDict,
) -> dict:
    scored = {int(row): i for i, row in enumerate(evaluation.rows)}
    lonely = set(evaluation.lonely.tolist())
    shown, sheets = set(queries), []
    for row in queries:
        hits = ranking.hits(row)
        shown.update(other for other, _ in hits)
        sheet = {
            "q": row,
            "hits": [[other, round(d, 4), ranking.mark(row, other)] for other, d in hits],
        }
        if row in scored:
            i = scored[row]
            sheet |= {"ap": round(float(evaluation.ap[i]), 4), "first": int(evaluation.first[i])}
            sheet["partners"] = int(evaluation.relevant[i])
        else:
            sheet["why"] = "no partner in the collection" if row in lonely else "writer unknown"
        sheets.append(sheet)
    pictures = thumbnails(pages, shown, config.report.thumbnail, config.report.max_pixels)
    about = {
        row: {
            "id": str(pages.page_ids[row]),
            "writer": str(pages.writers[row]),
            "page": str(pages.pages[row]),
            "href": quote(os.path.relpath(pages.image(row).resolve(), folder.resolve())),
            **pictures[row],
        }
        for row in sorted(shown)
    }
    return {"pages": about, "sheets": sheets, "relevance": config.relevance}


def _summary(
    pages: Embeddings,
    results: Sequence[Figures],
    ranking: Ranking,
    config: ConfigDict,
    missing: int,
    shown: int,
) -> str:
    last = results[-1]
    counts = last.figures
    labelled = int((ranking.labels >= 0).sum())
    excluded = f", without pages of the same {config.exclude_group}" if config.exclude_group else ""
    facts = [
        f"{len(pages)} pages, {labelled} with a known {config.relevance}, "
        f"{len(np.unique(ranking.labels[ranking.labels >= 0]))} {config.relevance}s.",
        f"Every labelled page asks, all other pages answer{excluded}.",
    ]
    if counts["queries_without_partner"]:
        facts.append(
            f"{counts['queries_without_partner']} labelled pages have no partner: they answer, but "
            "are not averaged."
        )
    parts = [f"<p>{html.escape(' '.join(facts))}</p>"]
    if counts["queries"]:
        parts.append(_figures_table(results))
    else:
        parts.append("<p>No query has a partner of the same label, so there are no figures.</p>")
    if missing:
        parts.append(
            f'<p class="note" id="missing">The images of {missing} of {shown} pages shown here '
            "could not be read (moved, or not readable); their places say why.</p>"
        )
    return "\n".join(parts)


def _figures_table(results: Sequence[Figures]) -> str:
    last = results[-1].figures
    ks = [key[3:] for key in last if key.startswith("top")]
    columns = ["map", *(f"top{k}" for k in ks), *(f"hard@{k}" for k in ks if k != "1"), "ndcg"]
    titles = {"map": "mAP", "ndcg": "nDCG"} | {f"top{k}": f"Top-{k}" for k in ks}
    head = "".join(f'<th scope="col" class="n">{titles.get(c, c)}</th>' for c in columns)
    rows = []
    for result in results:
        cells = "".join(
            f'<td class="n">{100 * result.figures[c]:.1f}</td>' if c in result.figures else "<td>"
            for c in columns
        )
        name, protocol = html.escape(result.name), html.escape(result.protocol)
        queries = result.figures["queries"]
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{protocol}</td>{cells}'
            f'<td class="n">{queries}</td></tr>'
        )
    return (
        '<div class="scroll"><table id="figures"><caption>Figures in percent; the sheets below '
        "are those of the last row</caption>"
        f'<thead><tr><th scope="col">descriptors</th><th scope="col">whitening</th>{head}'
        f'<th scope="col" class="n">queries</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _file_links(names: Sequence[str], current: str, shown: int, total: int) -> str:
    if len(names) == 1:
        return ""
    links = [
        f'<b aria-current="page">{i}</b>' if name == current else f'<a href="{name}">{i}</a>'
        for i, name in enumerate(names, start=1)
    ]
    order = "" if shown == total else f" (the hardest {shown} of {total} queries)"
    return f'<nav aria-label="files"><p>Part{order}: {" ".join(links)}</p></nav>'


def _writers_table(
    pages: Embeddings, evaluation: metrics.Evaluation, labels: np.ndarray, relevance: str
) -> str:
    by_label = metrics.per_label(evaluation, labels)
    if not by_label:
        return ""
    first = {int(label): row for row, label in reversed(list(enumerate(labels)))}
    rows = []
    for code, figures in sorted(by_label.items(), key=lambda item: item[1]["map"]):
        row = first[code]
        name = str(pages.writers[row]) + (f" / {pages.pages[row]}" if relevance == "page" else "")
        rows.append(
            f'<tr><th scope="row">{html.escape(name)}</th><td class="n">{figures["queries"]}</td>'
            f'<td class="n">{100 * figures["map"]:.1f}</td>'
            f'<td class="n">{100 * figures["top1"]:.1f}</td></tr>'
        )
    return (
        f"<details id=writers><summary>Figures of each {relevance} ({len(rows)}), hardest first"
        '</summary><div class="scroll"><table class="sortable"><thead><tr>'
        f'<th scope="col">{relevance}</th><th scope="col" class="n">queries</th>'
        '<th scope="col" class="n">mAP</th><th scope="col" class="n">Top-1</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _page(title: str, body: Sequence[str], data: dict) -> str:
    assets = resources.files("saghog_jax.retrieval") / "assets"
    parts = {
        "title": html.escape(title),
        "style": (assets / "report.css").read_text("utf-8"),
        "body": "\n".join(body),
        # `</script>` inside of a file name must not end the element.
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
        "script": (assets / "report.js").read_text("utf-8"),
    }
    page = (assets / "report.html").read_text("utf-8")
    before, *rest = page.split("{{")
    out = [before]
    for piece in rest:
        name, text = piece.split("}}", 1)
        out += [parts[name], text]
    return "".join(out)
