"""Stage verify: compares patch stores with their store.json, to the byte."""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.labels.pseudo_labels import load_model
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.store.reader import read_npy, read_store_json
from saghog_jax.input_pipeline.store.writer import record_type
from saghog_jax.runs.stage_result import StageResult

logger = logging.getLogger(__name__)

# Problems in the final message; all problems are logged.
NAMED = 3


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Verifies a store, or all stores in a folder.

    Raises:
      UserError: there is no store, or a store is damaged or unfinished.
    """
    problems = []
    stores = find_stores(Path(config.stores))
    for folder in stores:
        store_problems = list(verify_store(folder))
        problems += store_problems
        for problem in store_problems:
            logger.info(f"damaged: {problem}")
        if not store_problems:
            counts = read_store_json(folder)["counts"]
            skipped = sum(n for key, n in counts.items() if key not in ("pages", "patches"))
            logger.info(
                f"{folder}: {counts['patches']:,} patches of {counts['pages']:,} pages "
                f"({skipped:,} of them skipped), all readable, all checksums right"
            )
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(
            f"{len(problems)} problems: {'; '.join(problems[:NAMED])}{more}. To repair a store, "
            "delete its store.json and the damaged shard folders, then prepare again: all other "
            "shards are reused"
        )
    return StageResult(workdir, paths={store.name: store for store in stores})


def find_stores(folder: Path) -> list[Path]:
    """The store `folder`, or the stores in `folder`, also unfinished ones.

    Raises:
      UserError: there is no store.
    """
    for folders in ([folder], sorted(folder.glob("*"))):
        stores = [f for f in folders if (f / "store.json").exists() or (f / "shards").is_dir()]
        if stores:
            return stores
    raise UserError(
        f"no patch store in {folder} (--config.stores); "
        "`python -m saghog_jax.main --config=configs/prepare.py` makes one"
    )


def verify_store(folder: Path) -> Iterator[str]:
    """Reads every byte of a store and yields its problems, a line each."""
    try:
        info = read_store_json(folder)
        size = info["config"]["patch_size"]
        manifest = read_csv(folder / "manifest.csv")
    except UserError as error:
        yield str(error)
        return
    digest = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    if digest != info["sha256"]["manifest.csv"]:
        yield f"{folder / 'manifest.csv'} has changed since it was written (checksum)"
    pages = info["counts"]["pages"]
    per_page = np.zeros(pages, np.int64)
    with ThreadPoolExecutor() as pool:
        for problems, rows, counts in pool.map(
            lambda shard: _verify_shard(folder, shard, size, pages), info["shards"]
        ):
            yield from problems
            per_page[rows] += counts
    stated = [page.extra.get("n_patches") for page in manifest.pages]
    if stated != [str(n) for n in per_page]:
        yield f"{folder / 'manifest.csv'} and the shards differ in the numbers of patches"
    total = sum(shard["n_patches"] for shard in info["shards"])
    if total != info["counts"]["patches"]:
        yield f"{folder / 'store.json'} states {info['counts']['patches']} patches, lists {total}"
    for kind in ("labels", "links"):
        for labels in sorted((folder / kind).glob("[!.]*")):
            yield from _verify_labels(labels, total)


def _verify_shard(
    folder: Path, shard: dict, size: int, pages: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The problems of a shard, its pages (rows of the manifest) and the patches of each page."""
    problems = []
    rows, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for name, expected in shard["sha256"].items():
        path = folder / "shards" / shard["name"] / name
        dtype, record = record_type(path.stem, size)
        try:
            array = read_npy(path)
        except UserError as error:
            problems.append(str(error))
            continue
        with path.open("rb") as file:
            unchanged = hashlib.file_digest(file, "sha256").hexdigest() == expected
        if not unchanged:
            problems.append(f"{path} has changed since it was written (checksum)")
        if (array.shape, array.dtype) != ((shard["n_patches"], *record), dtype):
            problems.append(f"{path} holds {array.dtype} {list(array.shape)}")
        elif path.stem == "page":
            if ((array < 0) | (array >= pages)).any():
                problems.append(f"{path} contains page numbers that are not in the manifest")
            else:
                rows, counts = np.unique(array, return_counts=True)
    return problems, rows, counts


def _verify_labels(folder: Path, patches: int) -> Iterator[str]:
    try:
        stated = json.loads((folder / "labels.json").read_text())
        digests = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in stated["sha256"]
        }
        linked = "classes" in stated
        classes = stated["classes"] if linked else len(load_model(folder).centres)
        labels = read_npy(folder / "labels.npy")
    except (OSError, ValueError, KeyError) as error:
        yield f"{folder} cannot be read ({' '.join(str(error).split())}); delete this folder"
        return
    if digests != stated["sha256"]:
        yield f"{folder} has changed since it was written (checksum); delete this folder"
    elif labels.shape != (patches,) or labels.min() < -1 or labels.max() >= classes:
        yield f"{folder / 'labels.npy'} does not fit this store; delete this folder"
