"""Stage 4: page descriptors to metrics.json, per_query.csv, ranking.csv and report.html."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from saghog_jax.retrieval import metrics, report, whitening
from saghog_jax.retrieval.embeddings import (
    Embeddings,
    check_comparable,
    load_embeddings,
    replacing,
)
from saghog_jax.retrieval.ranking import Ranking, nearest, score_rows

DEFINITIONS = {
    "protocol": "leave one page out: every labelled page asks, all other pages answer",
    "self": "removed by page_id",
    "ap": "mean over the relevant pages of j / rank of the j-th, equal distances by row",
    "distance": "1 - cosine similarity (orders as Euclidean distance on unit vectors)",
}


@dataclass(frozen=True)
class Result:
    """One row of the table of figures: some descriptors, and how they answered."""

    name: str
    protocol: str  # how they were whitened, and on what
    descriptors: np.ndarray
    evaluation: metrics.Evaluation
    figures: dict[str, float | int]


def run(config: ConfigDict, workdir: Path) -> None:
    """Evaluates `config.embeddings` (and those of `config.compare`) and writes the results.

    Raises:
      UserError: embeddings that are missing or damaged, a column or choice that does not exist.
    """
    _check(config)
    main = load_embeddings(config.embeddings)
    workdir.mkdir(parents=True, exist_ok=True)
    results = []
    for embeddings in [*_compared(config), main]:
        results += _results(embeddings, config, workdir, is_main=embeddings is main)
    best = results[-1]
    scores = score_rows(best.descriptors)
    groups = _groups(main, config)
    everyone = np.arange(len(main))
    found, similarity = nearest(scores, everyone, groups, len(main), config.top_k)
    ranking = Ranking(_labels(main, config), found, 1 - similarity)
    _write_per_query(workdir / "per_query.csv", main, best.evaluation)
    _write_ranking(workdir / "ranking.csv", main, ranking)
    _write_metrics(workdir / "metrics.json", config, main, results, ranking.labels)
    path = report.write_report(workdir, main, results, ranking, config)
    _print(results, ranking.labels, path)


def _check(config: ConfigDict) -> None:
    choices = {
        "relevance": (config.relevance, ("writer", "page")),
        "whitening.mode": (config.whitening.mode, whitening.MODES),
        "convention": (config.convention, ("partners", "published")),
    }
    for field, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"config.{field} is {value!r}, known: {', '.join(known)}")
    if config.whitening.mode == "inductive" and not config.whitening.fit:
        raise UserError(
            "config.whitening.mode=inductive needs config.whitening.fit: an embeddings folder of "
            "training pages by the same checkpoint"
        )
    if config.top_k < 1 or not config.ks or min(config.ks) < 1:
        raise UserError(f"config.top_k={config.top_k}, config.ks={tuple(config.ks)}: at least 1")


def _compared(config: ConfigDict) -> Iterator[Embeddings]:
    for where in config.compare:
        folder = Path(where.replace("{embeddings}", config.embeddings))
        if folder.is_dir():
            yield load_embeddings(folder)
        else:
            print(f"note: no embeddings to compare with at {folder}")


def _results(
    embeddings: Embeddings, config: ConfigDict, workdir: Path, is_main: bool
) -> list[Result]:
    labels, groups = _labels(embeddings, config), _groups(embeddings, config)

    def result(protocol: str, descriptors: np.ndarray) -> Result:
        scores = score_rows(descriptors)
        evaluation = metrics.evaluate(scores, labels, groups, config.ks)
        figures = metrics.summarize(evaluation, config.convention)
        return Result(embeddings.name, protocol, descriptors, evaluation, figures)

    results = [result("none", embeddings.descriptors)]
    mode = config.whitening.mode
    if mode == "transductive":
        fitted = _fit(embeddings, config.whitening.dim)
        source = "the evaluated pages"
    elif mode == "inductive" and is_main:
        fitted, source = _fitted_elsewhere(embeddings, config), config.whitening.fit
        whitening.save(fitted, workdir / "whitening.npz", embeddings.meta.get("checkpoint", ""))
    else:
        return results
    protocol = f"{mode}, {len(fitted.variances)} of {fitted.pages} pages ({source})"
    return [*results, result(protocol, whitening.apply(fitted, embeddings.descriptors))]


def _fit(embeddings: Embeddings, dim: int) -> whitening.Whitening:
    k, remark = whitening.choose_dim(dim, *embeddings.descriptors.shape)
    if remark:
        print(f"warning: {remark}")
    return whitening.fit(embeddings.descriptors, k)


def _fitted_elsewhere(embeddings: Embeddings, config: ConfigDict) -> whitening.Whitening:
    path = Path(config.whitening.fit)
    if path.suffix != ".npz":
        training = load_embeddings(path)
        check_comparable(training, embeddings)
        return _fit(training, config.whitening.dim)
    fitted, checkpoint = whitening.load(path)
    known = embeddings.meta.get("checkpoint", "")
    if len(fitted.mean) != embeddings.descriptors.shape[1] or (
        checkpoint and known and checkpoint != known
    ):
        raise UserError(
            f"{path} was fitted on descriptors of width {len(fitted.mean)} of checkpoint "
            f"{checkpoint or 'unknown'}; {embeddings.folder} has width "
            f"{embeddings.descriptors.shape[1]} of {known or 'unknown'}"
        )
    return fitted


def _labels(embeddings: Embeddings, config: ConfigDict) -> np.ndarray:
    if config.relevance == "page":
        return metrics.encode_labels(embeddings.writers, embeddings.pages)
    return metrics.encode_labels(embeddings.writers)


def _groups(embeddings: Embeddings, config: ConfigDict) -> np.ndarray | None:
    if not config.exclude_group:
        return None
    return metrics.encode_labels(embeddings.column(config.exclude_group))


def _write_per_query(path: Path, pages: Embeddings, e: metrics.Evaluation) -> None:
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        hits = [f"hits@{k}" for k in e.ks]
        header = ["query", "writer", "page", "status", "relevant", "gallery", "ap", "ndcg"]
        writer.writerow([*header, "first_rank", *hits])
        scored = {int(row): i for i, row in enumerate(e.rows)}
        lonely = set(e.lonely.tolist())
        for row in range(len(pages)):
            known = [pages.page_ids[row], pages.writers[row], pages.pages[row]]
            i = scored.get(row)
            if i is None:
                writer.writerow([*known, "no partner" if row in lonely else "no label"])
                continue
            figures = [e.relevant[i], e.gallery[i], f"{e.ap[i]:.6f}", f"{e.ndcg[i]:.6f}"]
            writer.writerow([*known, "scored", *figures, e.first[i], *e.hits[i]])


def _write_ranking(path: Path, pages: Embeddings, ranking: Ranking) -> None:
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rank", "page", "writer", "distance", "correct"])
        for row in range(len(pages)):
            for rank, (other, distance) in enumerate(ranking.hits(row), start=1):
                correct = {"right": "1", "wrong": "0", "unknown": ""}[ranking.mark(row, other)]
                page = [pages.page_ids[other], pages.writers[other]]
                writer.writerow([pages.page_ids[row], rank, *page, f"{distance:.6f}", correct])


def _write_metrics(
    path: Path, config: ConfigDict, main: Embeddings, results: list[Result], labels: np.ndarray
) -> None:
    best = results[-1]
    names = main.writers
    if config.relevance == "page":
        names = [f"{writer}/{page}" for writer, page in zip(main.writers, main.pages)]
    first = {int(label): row for row, label in reversed(list(enumerate(labels)))}
    by_label = metrics.per_label(best.evaluation, labels)
    content = {
        "definitions": {
            **DEFINITIONS,
            "relevance": config.relevance,
            "exclude_group": config.exclude_group,
            "convention": config.convention,
        },
        "embeddings": main.meta,
        "results": [{"name": r.name, "whitening": r.protocol, **r.figures} for r in results],
        f"per_{config.relevance}": {str(names[first[c]]): f for c, f in by_label.items()},
    }
    with replacing(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _print(results: list[Result], labels: np.ndarray, path: Path) -> None:
    if (labels < 0).all():
        print("no page has a label: the ranking and the report are written, without figures")
    elif not results[-1].figures["queries"]:
        print("no page has a partner of the same label: ranking and report without figures")
    elif len(np.unique(labels[labels >= 0])) == 1 and (labels >= 0).all():
        print("all pages share one label: every ranking is right, whatever the descriptors")
    if results[-1].figures["queries"]:
        table = [("name", "whitening", "mAP", "Top-1", "queries")]
        for r in results:
            map_, top = (f"{r.figures[key]:.3f}" for key in ("map", "top1"))
            table.append((r.name, r.protocol, map_, top, str(r.figures["queries"])))
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        for row in table:
            left = [row[i].ljust(widths[i]) for i in (0, 1)]
            right = [row[i].rjust(widths[i]) for i in (2, 3, 4)]
            print("  ".join(left + right))
    lonely = results[-1].figures["queries_without_partner"]
    if lonely:
        print(f"{lonely} labelled pages have no partner and are not among the queries")
    print(f"report: {path}")
