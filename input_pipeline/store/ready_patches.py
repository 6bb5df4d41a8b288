"""A store made of a folder of ready-cut patches.

The published finetuning reads such folders: the name 77/77_9-IMG_MAX_1005_3.png holds the cluster
77, the writer 9 and the page 1005. All patches of the same split, writer and page form one page of
the store; its path is that of its first patch. Clusters become labels: every shard has an array
file `label.npy` besides those that `reader` describes, int32 [n], an index into the names
`config.clusters` of store.json, -1 for a patch without a cluster. Positions are unknown, so x and y
are -1. There are no descriptors.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import user_path
from saghog_jax.input_pipeline.pages import image_names
from saghog_jax.input_pipeline.pages.fingerprint import folder_fingerprint
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.store.reader import Store, read_npy
from saghog_jax.input_pipeline.store.ready_pages import (
    ReadyPage,
    cluster_names,
    group_by_page,
    select_split,
)
from saghog_jax.input_pipeline.store.ready_shards import ReadyJob, build_ready_shard
from saghog_jax.input_pipeline.store.workspace import open_workspace
from saghog_jax.input_pipeline.store.writer import FORMAT_VERSION, finish_store

INKS = ("otsu", "binary")
RULE = "ready"
DIGESTS = "ready_digests.json"
# Increased whenever the same patches would give other bytes.
_VERSION = 1
_PAGES_PER_SHARD = 16

logger = logging.getLogger(__name__)


def ensure_ready_store(
    folder: Path,
    cluster_regex: str,
    writer_regex: str,
    page_regex: str,
    root: Path,
    ink: str = "otsu",
    split: str = "",
    patch_size: int = 32,
    workers: int = 0,
    log: Callable[[str], None] = logger.info,
) -> Path:
    """Returns the folder of the store of these patches; builds missing shards.

    Args:
      folder: holds images of `patch_size` x `patch_size` pixels, also in subfolders.
      cluster_regex, writer_regex, page_regex: searched in the path below the folder. The value is
        the group named `cluster`, `writer` or `page`, otherwise the first group; a group named
        `split` is the split. The first two may be empty: then there are no labels or no writers.
      root: the store is `ready-<digest>` in this folder; the digest is over names, labels and
        contents.
      ink: `otsu` finds the ink of each patch by Otsu's threshold; with `binary` pixels below 128
        are ink, which is exact for black and white patches.
      split: only patches of this split; all patches if empty or if no name has a split.
      workers: processes; 0: one per core. The bytes do not depend on this number.
      log: called with one line at a time.

    Raises:
      UserError: there is no image, an expression is malformed or does not match, the split is
        unknown, no patch can be read and has this size, or the disk is full. Unusable patches are
        left out if others remain: the column `reason` of the store's manifest names them, and `log`
        is called with their number.
    """
    check_choice("ink", ink, INKS)
    if patch_size < 1 or patch_size**2 % 8:
        raise UserError(f"patch_size={patch_size}: its square must be a multiple of 8")
    if not page_regex:
        raise UserError("data.page_regex is empty; the names of patches must contain their page")
    source, root = user_path(folder), Path(root)
    regexes = {"cluster": cluster_regex, "writer": writer_regex, "page": page_regex}
    names, values, _ = image_names.search(source, regexes)
    names, values = select_split(split, names, values)
    clusters = cluster_names(values)
    pages = group_by_page(names, values, clusters)
    config = {
        "rule": RULE,
        "patch_size": patch_size,
        "ink": ink,
        "pages_per_shard": _PAGES_PER_SHARD,
        "clusters": clusters,
    }
    digest = _digest(config, pages, folder_fingerprint(source, names, root / DIGESTS))
    store = root / f"{RULE}-{digest[:12]}"
    if not (store / "store.json").exists():
        log(f"copying {len(names):,} patches of {len(pages):,} pages into {store}")
        _build(store, source, pages, config, digest, workers)
        _summarise(Store.open(store), len(names), log)
    return store


def ready_labels(store: Store) -> np.ndarray:
    """Clusters of all patches of a store of ready-cut patches, int32 [n], -1 without a cluster.

    Raises:
      UserError: the store has no labels.
    """
    shards = store.info["shards"]
    if "label.npy" not in shards[0]["sha256"]:
        raise UserError(
            f"{store.path} has no labels; only a store of ready-cut patches that was made with "
            "data.cluster_regex has labels"
        )
    labels = [read_npy(store.path / "shards" / shard["name"] / "label.npy") for shard in shards]
    return np.concatenate(labels)


def _digest(config: Mapping[str, object], pages: list[ReadyPage], contents: str) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, _VERSION, config, contents]).encode())
    for page in pages:
        digest.update(json.dumps(dataclasses.astuple(page)).encode())
    return digest.hexdigest()


def _build(
    store: Path,
    source: Path,
    pages: list[ReadyPage],
    config: Mapping[str, object],
    digest: str,
    workers: int,
) -> None:
    table = tuple(Page(p.names[0], p.writer, p.page, p.split, None, {}) for p in pages)
    with open_workspace(store) as workspace:
        jobs = [
            ReadyJob(
                store,
                workspace,
                number,
                first,
                source,
                pages[first : first + _PAGES_PER_SHARD],
                config["patch_size"],
                config["ink"],
                bool(config["clusters"]),
            )
            for number, first in enumerate(range(0, len(pages), _PAGES_PER_SHARD))
        ]
        for _ in run_jobs(build_ready_shard, jobs, min(workers or usable_cores(), len(jobs))):
            pass
        try:
            finish_store(store, workspace, Manifest(source, table, ()), config, digest)
        except OSError as error:
            raise UserError(f"cannot write {store / 'store.json'}: {error.strerror}") from error
        except UserError:
            # A store without a patch is useless; the next attempt should read the patches again.
            shutil.rmtree(store, ignore_errors=True)
            raise


def _summarise(store: Store, patches: int, log: Callable[[str], None]) -> None:
    labelled = ""
    if store.info["config"]["clusters"]:
        labels = ready_labels(store)
        labelled = (
            f", {(labels >= 0).sum():,} of them in {len(store.info['config']['clusters']):,} "
            "clusters"
        )
    log(f"{len(store.manifest):,} pages gave {len(store):,} patches{labelled}")
    if len(store) < patches:
        reasons = [p.extra["reason"] for p in store.manifest.pages if p.extra["reason"]]
        log(
            f"{patches - len(store):,} patches left out, such as: {reasons[0]}; "
            f"{store.path / 'manifest.csv'} lists all affected pages"
        )
