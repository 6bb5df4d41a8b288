"""Every file that stages write, and every key and column in it, is described in docs/formats.md."""

import csv
import json
import re

import numpy as np
import pytest
from places import ROOT
from toy import toy

from benchmarks.measure import Report
from saghog_jax.configs import common, embed, hands, pretrain, regions, retrieve, search
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.labels.page_links import ensure_links
from saghog_jax.input_pipeline.labels.pseudo_labels import ensure_labels
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.retrieval import int8_search
from saghog_jax.stages import run_stage

TEXT = (ROOT / "docs" / "formats.md").read_text()
WORDS = set(re.findall(r"`([^`]+)`", TEXT))
# A file counts as described if its name is, whatever folder the text names with it.
FILES = {word.rsplit("/", 1)[-1] for word in WORDS}
# What varies in names, and what stands for it in the text.
VARYING = (
    (r"^\d+_\d+\.npz$", "QUERY_RANK.npz"),
    (r"^.+-[0-9a-f]{12,}\.(png|json)$", r"NAME-DIGEST.\1"),
    (r"^\d+\.json$", "N.json"),
    (r"^speed\.json$", "NAME.json"),
    (r"@\d+$", "@K"),
    (r"^top\d+$", "topK"),
)
# Folders of other libraries.
THEIRS = ("checkpoints", "tensorboard")
# Keys below these are free: names of files, libraries, fields of configs, writers, statuses.
FREE = (
    *("config", "libraries", "sha256", "counts", "parameters", "weights", "versions", "settings"),
    *("keypoints", "store", "regions", "rule", "digests", "per_writer", "embeddings"),
    *("queries", "gallery"),
)
TINY = Corpus(train_writers=3, test_writers=2, pages=3, width=360, height=200, lines=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what each stage writes."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    data = common.data_config("train")
    data.pages = str(folder / "pages" / "manifest.csv")
    cutting = common.store_config("offline")
    cutting.update(root=str(folder / "prepare"), workers=1)
    clusters = common.pseudo_label_config()
    clusters.update(num_clusters=5, pca_dim=4)
    store = Store.open(ensure_store(data, cutting))
    ensure_labels(store, clusters)
    ensure_links(store, common.page_links_config())
    held_out = {"validation.share": 0.4, "validation.every": 2}
    run_stage(toy(pretrain.get_config(), folder, **held_out), folder / "pretrain")
    changes = {
        "checkpoint": str(folder / "pretrain"),
        "compare": (),
        "export_formats": ("npz", "parquet"),
        "regions.backend": "ink",
    }
    run_stage(toy(embed.get_config(), folder, **changes), folder / "embed")
    config = toy(regions.get_config(), folder, **{"regions.min_keypoints": 1})
    run_stage(config, folder / "looked")
    few = {"report.evidence.queries": 1, "report.evidence.matches": 1}
    changes = {"compare": (), "annotations": True, "whitening.mode": "transductive", **few}
    run_stage(toy(retrieve.get_config(), folder, **changes), folder / "retrieve")
    gallery = str(folder / "embed")
    changes = {"queries": gallery, "gallery": gallery, "report.evidence.queries": 0}
    config = toy(search.get_config(), folder, **changes)
    run_stage(config, folder / "search")
    decided = folder / "pages" / "decisions.csv"
    ids = np.load(folder / "embed" / "page_ids.npy", allow_pickle=False).tolist()
    pairs = [(*ids[:2], "accept"), (*ids[:2], "reject")]
    lines = [("query", "page", "decision"), *pairs]
    decided.write_text("".join(",".join(line) + "\n" for line in lines))
    changes = {"embeddings": gallery, "decisions": str(decided), "cut": "labels"}
    run_stage(toy(hands.get_config(), folder, **changes), folder / "hands")
    report = Report("speed")
    report.add("rate", [1.0, 2.0], "patches/s", ">= 1")
    report.write(folder / "benchmarks")
    return folder


def written(folder):
    """Files that stages have written, of this format and no other library's."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder).parts
        if path.is_file() and below[0] != "pages" and not set(below) & set(THEIRS):
            yield path


def named(name):
    for pattern, text in VARYING:
        name = re.sub(pattern, text, name)
    return name


def keys(value):
    """Keys of a JSON value, but for free ones."""
    if isinstance(value, list):
        for part in value:
            yield from keys(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            if key not in FREE or isinstance(part, list):
                yield from keys(part)


def inside(path):
    """Keys or columns of a file."""
    text = path.suffix in (".csv", ".json", ".jsonl")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return set(arrays.files)
    if not text or path.name in ("config.json", "annotations.json"):
        return set()
    if path.name == "page_fingerprints.json" or path.parent.name == "checksums":
        return set()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return set(next(csv.reader(file)))
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return {key for line in lines for key in keys(json.loads(line))}


def test_every_file_is_described(folder):
    found = {named(path.name) for path in written(folder)}
    assert found - FILES == set()
    expected = {"shard.json", "labels.json", "backend.json", "metrics.jsonl", "meta.json",
                "validation.json", "search.json", "whitening.npz", "QUERY_RANK.npz",
                "annotations.json", "embeddings.parquet", "NAME.json"}  # fmt: skip
    assert expected <= found


def test_every_key_and_column_is_described(folder):
    for path in written(folder):
        unknown = {named(key) for key in inside(path)} - WORDS
        assert not unknown, f"{path.relative_to(folder)}: {sorted(unknown)}"


def test_arrays_are_of_the_type_and_shape_described(folder):
    rows = re.findall(r"^\| (`[^|]+\.npy`[^|]*) \| (\w+) \[([^\]]+)\]", TEXT, re.M)
    said = {name.rsplit("/", 1)[-1]: (kind, shape) for cell, kind, shape in rows
            for name in re.findall(r"`([^`]+)`", cell)}  # fmt: skip
    # Collections of 5,000 pages and more have these codes.
    descriptors = np.load(folder / "embed" / "embeddings.npy", allow_pickle=False)
    int8_search.write(folder / "embed" / int8_search.FOLDER, descriptors)
    seen = set()
    for path in (path for path in written(folder) if path.suffix == ".npy"):
        kind, shape = said[path.name]
        array = np.load(path, allow_pickle=False)
        assert ("str" if array.dtype.kind == "U" else str(array.dtype)) == kind, path
        rest = tuple(int(eval(part, {"s": 32})) for part in shape.split(",")[1:] if "d" not in part)
        assert array.ndim == 1 + shape.count(","), path
        assert array.shape[array.ndim - len(rest) :] == rest, path
        seen.add(path.name)
    assert seen == set(said) - {"label.npy"}
