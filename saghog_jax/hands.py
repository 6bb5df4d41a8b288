"""Stage hands: page descriptors to hands, with or without known writers."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.reports import decisions
from saghog_jax.retrieval import clustering, constraints, hand_metrics, metrics
from saghog_jax.retrieval.closeness import Closeness, closeness
from saghog_jax.retrieval.clustering import Certainty, Cut
from saghog_jax.retrieval.constraints import Constraints, Contradiction
from saghog_jax.retrieval.embeddings import Embeddings, load_embeddings
from saghog_jax.runs.stage_result import StageResult

logger = logging.getLogger(__name__)

METHODS = ("average", "hdbscan", "linked", "first_neighbours")
CUTS = ("auto", "labels", "rule", "value")
# Methods that obey decisions and known writers.
_OBEDIENT = ("average", "linked")


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Sorts the pages of `config.embeddings` into hands.

    Raises:
      UserError: embeddings or decisions that are missing, damaged or of another collection; a
        choice that does not exist or does not fit the pages.
    """
    _check(config)
    pages = load_embeddings(config.embeddings)
    labels = metrics.encode_labels(pages.writers)
    bound, contradictions = _constraints(config, pages, labels)
    near = closeness(pages.descriptors)
    method = _method(config, len(pages))
    hands, chosen, judged = _sort(config, method, near, labels, bound)
    hands = clustering.by_size(hands)
    sure = clustering.certainty(near, hands, bound, chosen.threshold)
    workdir.mkdir(parents=True, exist_ok=True)
    _write_csv(workdir / "hands.csv", pages, hands, sure)
    content = {
        "embeddings": pages.meta,
        "method": method,
        "rule": chosen.rule,
        "threshold": chosen.threshold,
        "labelled_writers": chosen.writers,
        **_numbers(hands),
        "contradictions": [_in_words(c, pages) for c in contradictions],
        **_judge(config, method, near, hands, labels, judged),
    }
    with atomic_write(workdir / "hands.json", "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
    for line in _lines(content, workdir):
        logger.info(line)
    return StageResult(
        workdir,
        paths={"hands": workdir / "hands.csv", "metrics": workdir / "hands.json"},
        counts={"pages": len(pages), "hands": content["hands"]},
    )


def _check(config: ConfigDict) -> None:
    check_choice("config.method", config.method, METHODS)
    check_choice("config.cut", config.cut, CUTS)
    if config.method not in _OBEDIENT and (config.decisions or config.known_writers):
        raise UserError(
            f"config.method={config.method!r} cannot obey decisions or known writers; known: "
            f"{', '.join(_OBEDIENT)}"
        )
    if config.most_pages < 1 or config.bootstrap < 0:
        raise UserError(
            f"config.most_pages={config.most_pages} must be at least 1, config.bootstrap="
            f"{config.bootstrap} at least 0"
        )


def _method(config: ConfigDict, count: int) -> str:
    """The method, which all pairs of pages must fit into memory for.

    Raises:
      UserError: HDBSCAN is asked for with too many pages.
    """
    if count <= config.most_pages or config.method in ("linked", "first_neighbours"):
        return config.method
    if config.method == "hdbscan":
        raise UserError(
            f"{count:,} pages are too many for config.method='hdbscan'; known for more than "
            f"config.most_pages={config.most_pages:,}: linked, first_neighbours"
        )
    logger.warning(
        f"{count:,} pages are more than config.most_pages={config.most_pages:,}: hands are "
        "connected mutual neighbours, in place of average linkage"
    )
    return "linked"


def _constraints(
    config: ConfigDict, pages: Embeddings, labels: np.ndarray
) -> tuple[Constraints, list[Contradiction]]:
    pairs: dict[tuple[str, str], set[str]] = {}
    if config.decisions:
        pairs = decisions.by_pair(decisions.read_decisions(config.decisions), pages)
    rows = {name: row for row, name in enumerate(pages.page_ids.tolist())}
    decided = {
        kind: [(rows[a], rows[b]) for (a, b), kinds in pairs.items() if kind in kinds]
        for kind in ("accept", "reject")
    }
    writers = labels if config.known_writers else None
    bound, contradictions = constraints.resolve(
        len(pages), decided["accept"], decided["reject"], writers
    )
    if contradictions:
        logger.warning(
            f"{len(contradictions):,} contradictions, whose decisions are not obeyed (hands.json "
            f"lists all): {_say(contradictions[0], pages)}"
        )
    return bound, contradictions


def _sort(
    config: ConfigDict, method: str, near: Closeness, labels: np.ndarray, bound: Constraints
) -> tuple[np.ndarray, Cut, hand_metrics.BCubed | None]:
    """The hands, the cut, and the metrics of pages whose writers have not chosen the cut."""
    fixed = Cut(clustering.RULE, "rule")
    if config.cut == "value":
        fixed = Cut(config.threshold, "value")
    if method == "first_neighbours":
        return clustering.baselines(near.x)[method], Cut(clustering.RULE, "none"), None
    if method == "hdbscan":
        return clustering.hdbscan(near.x), Cut(clustering.RULE, "none"), None
    if method == "linked":
        return clustering.linked_in_blocks(near, bound, fixed.threshold), fixed, None
    wanted = config.cut == "labels" or (config.cut == "auto" and clustering.enough_labels(labels))
    if config.cut == "labels" and not (labels >= 0).any():
        raise UserError(
            f"config.cut='labels', but no page of {config.embeddings} has a known writer; known: "
            f"{', '.join(CUTS)}"
        )
    joins = clustering.average_joins(near, bound)
    if not wanted:
        chosen = clustering.by_rule(near, joins) if fixed.rule == "rule" else fixed
        return clustering.cut(joins, chosen.threshold), chosen, None
    choosing = joins
    if config.known_writers:
        # Joins that obey the writers fit them at any threshold.
        free = constraints.no_constraints(len(near))
        choosing = clustering.average_joins(near, free)
    chosen = clustering.calibrated(choosing, labels)
    several = len(np.unique(labels[labels >= 0])) > 1
    judged = clustering.held_out(choosing, labels) if several else None
    return clustering.cut(joins, chosen.threshold), chosen, judged


def _judge(
    config: ConfigDict,
    method: str,
    near: Closeness,
    hands: np.ndarray,
    labels: np.ndarray,
    judged: hand_metrics.BCubed | None,
) -> dict:
    """The metrics beside the baselines; nothing where no writer is known."""
    if not (labels >= 0).any():
        return {"metrics": {}, "differences": {}}
    others = clustering.baselines(near.x)
    rows = {method: hands} | {name: h for name, h in others.items() if name != method}
    figures = {name: hand_metrics.figures(h, labels) for name, h in rows.items()}
    ours = hand_metrics.bcubed(hands, labels)
    if judged is not None and not config.known_writers:
        figures[method]["bcubed_f_held_out"] = judged.f
        ours = judged
    differences = {}
    if config.bootstrap and figures[method]["writers"] > 1:
        for name in rows:
            if name != method:
                other = hand_metrics.bcubed(rows[name], labels)
                differences[name] = hand_metrics.difference([ours], [other], config.bootstrap)
    return {"metrics": figures, "differences": differences}


def _numbers(hands: np.ndarray) -> dict[str, int]:
    sizes = np.bincount(hands)
    return {"pages": len(hands), "hands": len(sizes), "alone": int((sizes == 1).sum())}


def _write_csv(path: Path, pages: Embeddings, hands: np.ndarray, certainty: Certainty) -> None:
    sizes = np.bincount(hands)
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["page", "writer", "hand", "pages_of_hand", "sure", "next_hand"])
        for row, hand in enumerate(hands.tolist()):
            sure, following = certainty.sure[row], int(certainty.following[row])
            names = [pages.page_ids[row], pages.writers[row], hand + 1, sizes[hand]]
            number = "" if np.isnan(sure) else f"{sure:.4f}"
            writer.writerow([*names, number, following + 1 if following >= 0 else ""])


def _in_words(contradiction: Contradiction, pages: Embeddings) -> dict:
    names = pages.page_ids
    return {
        "apart": [str(names[row]) for row in contradiction.apart],
        "because": "writers" if contradiction.writers else "decision",
        "accepted": [[str(names[a]), str(names[b])] for a, b in contradiction.chain],
    }


def _say(contradiction: Contradiction, pages: Embeddings) -> str:
    words = _in_words(contradiction, pages)
    a, b = words["apart"]
    why = "are pages of two writers" if contradiction.writers else "were rejected"
    chain = ", ".join(" = ".join(pair) for pair in words["accepted"])
    return f"{a} and {b} {why}, but " + (f"accepted: {chain}" if chain else "have one writer")


def _lines(content: dict, workdir: Path) -> list[str]:
    lines = [
        f"{content['pages']:,} pages in {content['hands']:,} hands, {content['alone']:,} pages are "
        f"alone: {workdir / 'hands.csv'}"
    ]
    if content["alone"] == content["pages"]:
        lines.append("no two pages are close enough for one hand; a smaller config.threshold joins")
    elif content["hands"] == 1:
        lines.append("all pages are in one hand; a larger config.threshold splits")
    for name, figures in content["metrics"].items():
        lines.append(
            f"{name}: BCubed precision {figures['bcubed_precision']:.3f}, recall "
            f"{figures['bcubed_recall']:.3f}, F {figures['bcubed_f']:.3f}, adjusted Rand "
            f"{figures['adjusted_rand']:.3f}, {figures['hands']} hands of {figures['writers']} "
            "writers"
        )
    for name, (middle, low, high) in content["differences"].items():
        lines.append(f"BCubed F minus {name}: {middle:+.3f} ({low:+.3f} to {high:+.3f})")
    return lines
