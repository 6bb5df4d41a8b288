"""Quality on real handwriting: every row of docs/quality.md, from images to figures.

    python -m benchmarks.quality DATA
    python -m benchmarks.quality DATA --rows page writer --whitening
    python -m benchmarks.quality DATA --evaluated validation

DATA holds the sets copiste_fr and hist_mss (benchmarks/quality_data.py says what is read). One
model is trained on both training halves by the variants `small` of pretrain and finetune; rows that
differ in finetuning alone share their pretraining. `--evaluated validation` is for choosing: it
sees training halves alone. What is there is not made again. Writes FOLDER/quality.json and
FOLDER/quality.md: mAP and Top-1 with 95 % intervals, differences to SIFT-VLAD (in the JSON also to
`linked`, `sift` and `recipe`) by a paired bootstrap over writers, patches seen; FOLDER/times.json
has seconds on the clock and of all cores.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from benchmarks import quality_data
from benchmarks.measure import Report, cpu_seconds
from benchmarks.sift_vlad import WORDS, described
from saghog_jax.configs import embed, finetune, pretrain
from saghog_jax.embedding import sift as patch_sift
from saghog_jax.embedding.run_recipe import read_recipe
from saghog_jax.input_pipeline.labels import sift_vlad
from saghog_jax.input_pipeline.pages.manifest import Manifest, read_csv
from saghog_jax.retrieval import metrics, whitening
from saghog_jax.retrieval.aggregate import concatenate, l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings, load_embeddings
from saghog_jax.retrieval.embeddings_writer import save_embeddings
from saghog_jax.retrieval.ranking import score_rows
from saghog_jax.stages import run_stage

SAMPLES = 10_000
SIFT = tuple(patch_sift.descriptor_name(kind) for kind in patch_sift.KINDS)
# Rows that later rows are compared with.
COMPARED = ("sift_vlad", "linked", "sift", "recipe")
# Patches of a page at a size, at most; the recipe takes 2,500, which whole images gain by.
PATCHES_A_PAGE = 600


class Row(NamedTuple):
    """One row: changes to the two configs; `finetune` None shows the encoder by CLS.

    sift: shares of the similarity that SIFT of the same patches has, by kind (configs/embed.py).
    """

    name: str
    says: str
    pretrain: dict | None
    finetune: dict | None
    sift: Mapping[str, float] = MappingProxyType({})


RECIPE = embed.get_config("small").sift.to_dict()
ROWS = (
    Row("sift_vlad", "SIFT, RootSIFT, 100 words, VLAD", None, None),
    Row("random", "random weights, CLS", None, None),
    Row("pretrained", "pretrained, CLS", {}, None),
    Row("cluster", "finetuned on SIFT clusters", {}, {"labels": "cluster"}),
    Row("page", "finetuned on pages", {}, {"labels": "page"}),
    Row("linked", "finetuned on linked pages", {}, {}),
    Row("writer", "finetuned on writers", {}, {"labels": "writer"}),
    Row("scratch", "on linked pages, from scratch", None, {"optim.layer_decay": 1.0}),
    Row("foreground", "on linked pages, foreground tokens", {}, {"descriptor": "foreground"}),
    Row("pixel", "on linked pages, pixel target", {"target": "pixel"}, {}),
    Row("rgb", "on linked pages, HOG of RGB target", {"target": "hog_rgb"}, {}),
    Row("sift_patch", "upright SIFT of the same patches", {}, {}, {"patch": 1.0}),
    Row(
        "sift_keypoint",
        "SIFT of the same patches, sizes and angles found",
        {},
        {},
        {"keypoint": 1.0},
    ),
    Row("sift", "both, without a model", {}, {}, {"patch": 0.5, "keypoint": 0.5}),
    Row("recipe", "both beside linked pages: the recipe", {}, {}, RECIPE),
    Row("recipe_writer", "both beside writers", {}, {"labels": "writer"}, RECIPE),
)
DEFAULT = (
    *("sift_vlad", "random", "pretrained", "page", "linked", "writer"),
    *("sift_patch", "sift_keypoint", "sift", "recipe", "recipe_writer"),
)


class Protocol(NamedTuple):
    """Which pages are evaluated, and the column whose value a query's gallery must not share."""

    set: str
    kind: str
    left_out: str

    @property
    def name(self) -> str:
        return f"{self.set} {self.kind}" + (
            f", same {self.left_out} left out" if self.left_out else ""
        )


KINDS = ("images", "fragments")
PROTOCOLS = (
    Protocol("copiste_fr", "images", ""),
    Protocol("copiste_fr", "images", "sheet"),
    Protocol("copiste_fr", "fragments", "source"),
    Protocol("copiste_fr", "fragments", "sheet"),
    Protocol("hist_mss", "images", ""),
    Protocol("hist_mss", "fragments", "source"),
)


class Bench:
    """The folders of a comparison, and what each step took."""

    def __init__(
        self,
        data: Path,
        folder: Path,
        evaluated: str,
        changes: dict,
        sets: dict[str, float],
        patches: int = PATCHES_A_PAGE,
        long: bool = False,
    ) -> None:
        self.folder, self._patches, self._long = folder, patches, long
        self.paths = quality_data.write_manifests(data, folder, evaluated, sets)
        self._changes = changes
        self._done: set[str] = set()

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Runs `work` once; adds its seconds, on the clock and of all cores, to times.json."""
        if name in self._done:
            return
        self._done.add(name)
        path = self.folder / "times.json"
        times = json.loads(path.read_text()) if path.exists() else {}
        wall, cpu = time.monotonic(), cpu_seconds()
        work()
        before = times.get(name, [0, 0])
        spent = (time.monotonic() - wall, cpu_seconds() - cpu)
        times[name] = [round(a + b, 1) for a, b in zip(before, spent, strict=True)]
        path.write_text(json.dumps(times, indent=1) + "\n")

    def model(self, row: Row) -> tuple[Path, int]:
        """The run folder of a row, trained, and the patches it has seen, pretraining included."""
        first, seen, folder = "", 0, Path()
        if row.pretrain is not None:
            config = self._config(pretrain.get_config("small"), row.pretrain)
            folder = self.folder / ("pretrain" + _suffix(row.pretrain))
            self._train(config, folder)
            first, seen = str(folder), config.total_steps * config.global_batch_size
        if row.finetune is not None:
            config = self._config(finetune.get_config("small"), row.finetune)
            config.checkpoint = first
            folder = self.folder / f"finetune{_suffix(row.pretrain)}{_suffix(row.finetune)}"
            self._train(config, folder)
            seen += config.total_steps * config.global_batch_size
        return folder, seen

    def _config(self, config, changes: dict):
        config.update_from_flattened_dict(
            {
                "data.pages": str(self.paths["train"]),
                "store.root": str(self.folder / "prepare"),
                **self._asked(config),
                **changes,
            }
        )
        return config

    def _asked(self, config) -> dict:
        """The changes of the command line to sections and fields that a config has."""
        known = dict(config.iteritems(preserve_field_references=False))
        return {k: v for k, v in self._changes.items() if k.split(".")[0] in known}

    def _train(self, config, folder: Path) -> None:
        self.timed(folder.name, lambda: run_stage(config, folder))

    def embed(self, row: Row, pages: str) -> tuple[Path, int, bool]:
        """Where a table is embedded by a row's model, and the patches that the model has seen.

        With compact descriptors a finetuned model embeds by its whole recipe (the third value is
        True), and the parts are cut out of its descriptors; else it embeds alone.
        """
        folder, seen = self.model(row)
        config = embed.get_config("small")
        config.update_from_flattened_dict(self._asked(config))
        recipe = None if self._long or row.finetune is None else read_recipe(folder)
        # Other scales than those of the projection give long descriptors.
        whole = recipe is not None and recipe.with_config(config).compact > 0
        if not whole:
            config.sift.patch = config.sift.keypoint = 0.0
        config.data.pages, config.data.split = str(self.paths[pages]), ""
        config.store.root = str(self.folder / "prepare")
        config.store.max_patches_per_page = self._patches
        config.checkpoint, config.compare = str(folder), () if whole else _beside(row)
        if self._long:
            config.compact = 0
        more = "" if self._patches == PATCHES_A_PAGE else f"-{self._patches}"
        more += "-long" * self._long + "-recipe" * whole
        out = self.folder / pages / (folder.name + more)
        self.timed(f"{pages}/{out.name}", lambda: run_stage(config, out))
        return out, seen, whole

    def sift_vlad(self, pages: str) -> Embeddings:
        """Descriptors of a table by the classical baseline; its words are of training pages."""
        out = self.folder / pages / "sift_vlad"
        if not (out / "meta.json").exists():
            self.timed(
                f"{pages}/sift_vlad", lambda: self._sift_vlad(read_csv(self.paths[pages]), out)
            )
        return load_embeddings(out)

    def _sift_vlad(self, manifest: Manifest, out: Path) -> None:
        workers = len(os.sched_getaffinity(0))
        words = self.folder / "words.npy"
        if not words.exists():
            training = list(described(read_csv(self.paths["train"]), workers))
            np.save(words, sift_vlad.fit_words(training, WORDS))
        descriptors = sift_vlad.page_vectors(described(manifest, workers), np.load(words))
        save_embeddings(out, descriptors, manifest.pages, manifest.root, {"model": "sift_vlad"})

    def row(self, row: Row, pages: str) -> tuple[Embeddings, np.ndarray, int]:
        """A table, its descriptors by a row's model, and the patches that the model has seen."""
        if row.name == "sift_vlad":
            found = self.sift_vlad(pages)
            return found, np.asarray(found.descriptors), 0
        if row.name == "random":
            # Beside the pretrained encoder, which had these weights before its first update.
            out, *_ = self.embed(Row("", "", {}, None), pages)
            found = load_embeddings(out / "random")
            return found, np.asarray(found.descriptors), 0
        # SIFT alone by the words of one model for all: each fits them on the same patches.
        model = Row("", "", {}, {}) if sum(row.sift.values()) == 1 else row
        out, seen, whole = self.embed(model, pages)
        if whole:
            found = load_embeddings(out)
            return found, _of_recipe(found, row), seen if model is row else 0
        return self._long_row(row, pages)

    def _long_row(self, row: Row, pages: str) -> tuple[Embeddings, np.ndarray, int]:
        """As `row`, where each part is embedded on its own."""
        seen, parts, shares = 0, [], []
        if sum(row.sift.values()) < 1:
            out, seen, _ = self.embed(row, pages)
            parts.append(load_embeddings(out))
            shares.append(1 - sum(row.sift.values()))
        for kind in (kind for kind in patch_sift.KINDS if row.sift.get(kind)):
            out, *_ = self.embed(Row("", "", {}, {}), pages)
            parts.append(load_embeddings(out / patch_sift.descriptor_name(kind)))
            shares.append(row.sift[kind])
        x = concatenate([np.asarray(part.descriptors) for part in parts], shares)
        return parts[0], x, seen


def _beside(row: Row) -> tuple[str, ...]:
    """What is embedded in one go with the model of a row."""
    if row.finetune is None:
        return ("random",)
    return () if row.pretrain is None or row.pretrain or row.finetune else SIFT


def _of_recipe(pages: Embeddings, row: Row) -> np.ndarray:
    """The descriptors of a row, float32, of compact descriptors by the whole recipe.

    Each part has the same number of columns.
    """
    x = np.asarray(pages.descriptors, np.float32)
    if row.sift == RECIPE:
        return x
    names = [part["descriptor"] for part in pages.meta["recipe"]["parts"]]
    parts = dict(zip(names, np.split(x, len(names), axis=1), strict=True))
    shares = {patch_sift.descriptor_name(kind): share for kind, share in row.sift.items()}
    shares = shares or {names[0]: 1.0}
    chosen = [l2_normalize(parts[name]) for name in shares]
    return concatenate(chosen, list(shares.values()))


def _suffix(changes: dict | None) -> str:
    if changes is None:
        return "-none"
    return "".join(f"-{key.split('.')[-1]}={value}" for key, value in changes.items())


def evaluate(pages: Embeddings, x: np.ndarray, protocol: Protocol) -> tuple:
    """The evaluation of one protocol and the labels of its pages."""
    rows = np.flatnonzero(pages.column("set") == protocol.set)
    labels = metrics.encode_labels(pages.writers[rows])
    groups = None
    if protocol.left_out:
        groups = metrics.encode_labels(pages.column(protocol.left_out)[rows])
    return metrics.evaluate(score_rows(x[rows]), labels, groups, (1,)), labels


def whitened(x: np.ndarray, of: Embeddings, fit: np.ndarray, protocol: Protocol) -> np.ndarray:
    """x whitened as fitted on `fit`, the descriptors of `of`, on its pages of the protocol."""
    fit = fit[np.flatnonzero(of.column("set") == protocol.set)]
    dim, _ = whitening.choose_dim(0, *fit.shape)
    return whitening.apply(whitening.fit(fit, dim), x)


def compare(bench: Bench, names: list[str], kinds: list[str], report: Report, whiten: bool) -> str:
    """Figures of the rows by the protocols into the report; returns them as a Markdown table."""
    protocols = [p for p in PROTOCOLS if p.kind in kinds]
    compared: dict[tuple[str, str], metrics.Evaluation] = {}
    lines = [
        "| row | patches | " + " | ".join(p.name for p in protocols) + " |",
        "|---|---|" + "---|" * len(protocols),
    ]
    for row in (r for r in ROWS if r.name in names):
        found = {kind: bench.row(row, kind) for kind in kinds}
        fits: dict[str, dict] = {"": {}}
        if whiten:
            fits[", transductive whitening"] = found
            fits[", inductive whitening"] = {k: bench.row(row, f"fit-{k}") for k in kinds}
        for done, fit in fits.items():
            cells = []
            for protocol in protocols:
                pages, x, seen = found[protocol.kind]
                if fit:
                    x = whitened(x, *fit[protocol.kind][:2], protocol)
                figure = _figure(evaluate(pages, x, protocol), compared, protocol, row.name + done)
                report.figures.append({**figure, "patches": seen})
                cells.append(_cell(figure))
            lines.append(f"| {row.says}{done} | {seen:,} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _figure(found: tuple, compared: dict, protocol: Protocol, name: str) -> dict:
    """One row by one protocol, and what it is above the rows of `compared`, which it may join."""
    e, labels = found
    figures = metrics.summarize(e)
    figure = {
        "row": name,
        "protocol": protocol.name,
        "map": figures["map"],
        "top1": figures["top1"],
        "interval": metrics.confidence(e, labels, SAMPLES)["map"],
    }
    for (other, where), evaluation in compared.items():
        if where == protocol.name:
            figure[f"minus_{other}"] = metrics.difference(e, evaluation, labels, SAMPLES)
    if name in COMPARED:
        compared[name, protocol.name] = e
    return figure


def _cell(found: dict) -> str:
    def short(value: float) -> str:
        return f"{value:.3f}".replace("0.", ".", 1)

    cell = f"{short(found['map'])} / {short(found['top1'])}"
    if "minus_sift_vlad" in found:
        low, high = (f"{end:+.3f}" for end in found["minus_sift_vlad"][1:])
        cell += f" ({low} to {high})"
    return cell


def main() -> None:
    """Parses the command line, makes what is missing, writes and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    known = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=known, default=list(DEFAULT), metavar="ROW")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--evaluated", choices=("test", "validation"), default="test")
    parser.add_argument("--whitening", action="store_true", help="inductive and transductive rows")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of all three configs"
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        default=list(quality_data.SETS.values()),
        metavar="FACTOR",
        help="by which pages are resized, for each set",
    )
    parser.add_argument(
        "--patches", type=int, default=PATCHES_A_PAGE, help="of a page at a size, at most"
    )
    parser.add_argument(
        "--long", action="store_true", help="long descriptors instead of the compact ones"
    )
    args = parser.parse_args()
    sets = dict(zip(quality_data.SETS, args.scales, strict=True))
    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    folder = args.folder.resolve()
    bench = Bench(args.data, folder, args.evaluated, changes, sets, args.patches, args.long)
    report = Report("quality")
    table = compare(bench, args.rows, args.kinds, report, args.whitening)
    (bench.folder / "quality.md").write_text(table)
    report.write(bench.folder)


if __name__ == "__main__":
    main()
