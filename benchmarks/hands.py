"""Hands beside the baselines, on embeddings of whole images and of fragments (docs/hands.md).

    python -m benchmarks.hands IMAGES FRAGMENTS --json FILE
    python -m benchmarks.hands IMAGES FRAGMENTS --few

IMAGES and FRAGMENTS are embeddings folders of the pages of benchmarks/quality_data.py, whose
manifests have the columns set, source and sheet. Each set is sorted alone: whole images; whole
images, one a sheet (sets with several images a sheet); fragments, one a source, of writers with
two or more sources. What has one page a sheet or a source is drawn five times, by seeds 0 to 4,
and figures are means. The cut is that of the rule; another column has the F of pages whose cut
other writers have chosen. Prints a Markdown table. The bar is met if BCubed F is above the first
neighbours by .03, or by a quarter of their distance to 1 where they are above .90, the lower end
of the paired bootstrap over writers is above 0, and F is not below linked pages. `--few` sorts
instead all fragments of 3 and of 10 writers, drawn five times.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval import clustering, hand_metrics, metrics
from saghog_jax.retrieval.closeness import closeness
from saghog_jax.retrieval.constraints import no_constraints
from saghog_jax.retrieval.embeddings import Embeddings, load_embeddings

SEEDS = (0, 1, 2, 3, 4)
SAMPLES = 10_000
# Numbers of writers of `--few`.
FEW = (3, 10)
METHODS = ("first_neighbours", "linked", "hdbscan", "average")


class Selection(NamedTuple):
    """Pages of a set that are sorted together, once or drawn several times.

    rows: the pages of each draw.
    """

    name: str
    pages: Embeddings
    rows: list[np.ndarray]


def selections(images: Embeddings, fragments: Embeddings) -> Iterator[Selection]:
    """The pages of the protocol, set by set.

    Raises:
      UserError: a manifest has no column set, source or sheet, or a set has no fragments of
        writers with two or more sources.
    """
    for name in np.unique(images.column("set")).tolist():
        rows = np.flatnonzero(images.column("set") == name)
        yield Selection(f"{name} images", images, [rows])
        sheets = images.column("sheet")[rows]
        if len(np.unique(sheets)) < len(rows):
            draws = [one_each(rows, sheets, seed) for seed in SEEDS]
            yield Selection(f"{name} images, one a sheet", images, draws)
        rows = np.flatnonzero(fragments.column("set") == name)
        rows = rows[_of_several_sources(fragments, rows)]
        if not len(rows):
            raise UserError(
                f"{fragments.folder} has no fragments of {name} of writers with two sources"
            )
        sources = fragments.column("source")[rows]
        draws = [one_each(rows, sources, seed) for seed in SEEDS]
        yield Selection(f"{name} fragments, one a source", fragments, draws)


def few_writers(fragments: Embeddings, count: int) -> Iterator[Selection]:
    """All fragments of some writers of each set."""
    for name in np.unique(fragments.column("set")).tolist():
        rows = np.flatnonzero(fragments.column("set") == name)
        writers = np.unique(fragments.writers[rows])
        draws = []
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(len(writers))
            draws.append(rows[np.isin(fragments.writers[rows], writers[order[:count]])])
        yield Selection(f"{name} fragments of {count} writers", fragments, draws)


def one_each(rows: np.ndarray, values: np.ndarray, seed: int) -> np.ndarray:
    """One row of each value, drawn; in the order of rows."""
    order = np.random.default_rng(seed).permutation(len(rows))
    _, first = np.unique(values[order], return_index=True)
    return np.sort(rows[order[first]])


def _of_several_sources(pages: Embeddings, rows: np.ndarray) -> np.ndarray:
    pairs = np.unique(np.stack([pages.writers[rows], pages.column("source")[rows]], 1), axis=0)
    writers, sources = np.unique(pairs[:, 0], return_counts=True)
    return np.isin(pages.writers[rows], writers[sources > 1])


def measure(selection: Selection) -> dict:
    """Figures of one selection: means over its draws, and differences to the baselines."""
    found: dict[str, list[hand_metrics.BCubed]] = {name: [] for name in METHODS}
    figures: dict[str, list[dict]] = {name: [] for name in METHODS}
    held_out = []
    for rows in selection.rows:
        near = closeness(selection.pages.descriptors[rows])
        labels = metrics.encode_labels(selection.pages.writers[rows])
        joins = clustering.average_joins(near, no_constraints(len(rows)))
        sortings = clustering.baselines(near.x)
        sortings["hdbscan"] = clustering.hdbscan(near.x)
        sortings["average"] = clustering.cut(joins, clustering.by_rule(near, joins).threshold)
        for name, hands in sortings.items():
            found[name].append(hand_metrics.bcubed(hands, labels))
            figures[name].append(hand_metrics.figures(hands, labels))
        held_out.append(clustering.held_out(joins, labels).f)
    means = {
        name: {key: float(np.mean([f[key] for f in draws])) for key in draws[0]}
        for name, draws in figures.items()
    }
    base, linked = (means[name]["bcubed_f"] for name in METHODS[:2])
    gain = hand_metrics.difference(found["average"], found["first_neighbours"], SAMPLES)
    wanted = max(linked, base + (0.03 if base <= 0.9 else (1 - base) / 4))
    return {
        "protocol": selection.name,
        "draws": len(selection.rows),
        "pages": float(np.mean([len(rows) for rows in selection.rows])),
        "methods": means,
        "held_out_f": float(np.mean(held_out)),
        "minus_first_neighbours": gain,
        "minus_linked": hand_metrics.difference(found["average"], found["linked"], SAMPLES),
        "bar": wanted,
        "met": bool(means["average"]["bcubed_f"] >= wanted and gain[1] > 0),
    }


def table(results: list[dict]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| pages | writers | hands | first neighbours | linked | HDBSCAN | `average`: P / R / F "
        "| ARI | minus first neighbours | bar | F, cut by other writers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ours = r["methods"]["average"]
        middle, low, high = r["minus_first_neighbours"]
        others = (_short(r["methods"][name]["bcubed_f"]) for name in METHODS[:3])
        scores = (_short(ours[f"bcubed_{name}"]) for name in ("precision", "recall", "f"))
        cells = [
            f"{r['protocol']} ({r['pages']:.0f})",
            *(f"{ours[name]:.0f}" for name in ("writers", "hands")),
            *others,
            " / ".join(scores),
            _short(ours["adjusted_rand"]),
            f"{middle:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{_short(r['bar'])}: {'met' if r['met'] else '**missed**'}",
            _short(r["held_out_f"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def main() -> None:
    """Parses the command line, prints the table, and writes the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("fragments", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--few", action="store_true")
    args = parser.parse_args()
    images, fragments = load_embeddings(args.images), load_embeddings(args.fragments)
    asked = list(selections(images, fragments))
    if args.few:
        asked = [s for count in FEW for s in few_writers(fragments, count)]
    results = [measure(selection) for selection in asked]
    print(table(results), end="")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
