"""Stage verify: whether patch stores are what store.json says, to the byte."""

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

# Problems that the final message names; all are printed.
NAMED = 3


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Verifies a store, or all stores in a folder.

    Raises:
      UserError: no store there, or a damaged or unfinished one.
    """
    problems = []
    stores = find_stores(Path(config.stores))
    for folder in stores:
        found = list(verify_store(folder))
        problems += found
        for problem in found:
            logger.info(f"damaged: {problem}")
        if not found:
            counts = read_store_json(folder)["counts"]
            skipped = sum(n for key, n in counts.items() if key not in ("pages", "patches"))
            logger.info(
                f"{folder}: {counts['patches']:,} patches of {counts['pages']:,} pages "
                f"({skipped:,} of them skipped), all readable, all checksums right"
            )
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(
            f"{len(problems)} problems: {'; '.join(problems[:NAMED])}{more}. To mend a store, "
            "delete its store.json and the damaged shard folders, then prepare again: the rest "
            "is kept"
        )
    return StageResult(workdir, paths={store.name: store for store in stores})


def find_stores(folder: Path) -> list[Path]:
    """The store that `folder` is, or the stores in it, finished or not.

    Raises:
      UserError: there is none.
    """
    for stores in ([folder], sorted(folder.glob("*"))):
        found = [f for f in stores if (f / "store.json").exists() or (f / "shards").is_dir()]
        if found:
            return found
    raise UserError(
        f"no patch store in {folder} (--config.stores); "
        "`python -m saghog_jax.main --config=configs/prepare.py` makes one"
    )


def verify_store(folder: Path) -> Iterator[str]:
    """Reads every byte of a store and yields what is wrong with it, a line each."""
    try:
        info = read_store_json(folder)
        size = info["config"]["patch_size"]
        manifest = read_csv(folder / "manifest.csv")
    except UserError as error:
        yield str(error)
        return
    digest = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    if digest != info["sha256"]["manifest.csv"]:
        yield f"{folder / 'manifest.csv'} is not the one that was written (checksum)"
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
        yield f"{folder / 'manifest.csv'} states other numbers of patches than the shards hold"
    total = sum(shard["n_patches"] for shard in info["shards"])
    if total != info["counts"]["patches"]:
        yield f"{folder / 'store.json'} states {info['counts']['patches']} patches, lists {total}"
    for kind in ("labels", "links"):
        for labels in sorted((folder / kind).glob("[!.]*")):
            yield from _verify_labels(labels, total)


def _verify_shard(
    folder: Path, shard: dict, size: int, pages: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What is wrong with a shard; the pages in it (rows of the manifest) and their patches."""
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
            right = hashlib.file_digest(file, "sha256").hexdigest() == expected
        if not right:
            problems.append(f"{path} is not the one that was written (checksum)")
        if (array.shape, array.dtype) != ((shard["n_patches"], *record), dtype):
            problems.append(f"{path} holds {array.dtype} {list(array.shape)}")
        elif path.stem == "page":
            if ((array < 0) | (array >= pages)).any():
                problems.append(f"{path} names pages that the manifest does not have")
            else:
                rows, counts = np.unique(array, return_counts=True)
    return problems, rows, counts


def _verify_labels(folder: Path, patches: int) -> Iterator[str]:
    try:
        stated = json.loads((folder / "labels.json").read_text())
        found = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in stated["sha256"]
        }
        linked = "classes" in stated
        classes = stated["classes"] if linked else len(load_model(folder).centres)
        labels = read_npy(folder / "labels.npy")
    except (OSError, ValueError, KeyError) as error:
        yield f"{folder} cannot be read ({' '.join(str(error).split())}); delete this folder"
        return
    if found != stated["sha256"]:
        yield f"{folder} does not hold what was written (checksum); delete this folder"
    elif labels.shape != (patches,) or labels.min() < -1 or labels.max() >= classes:
        yield f"{folder / 'labels.npy'} are not the labels of this store; delete this folder"
