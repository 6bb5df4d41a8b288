"""A folder of ready-cut patches becomes a store as it is.

The published finetuning reads such folders: in 77/77_9-IMG_MAX_1005_3.png the name tells the
cluster 77, the writer 9 and the page 1005. Patches of one split, writer and page are a page of the
store; its path is that of its first patch. Clusters are kept as labels, an array file `label.npy`
of every shard, beside those that `store` describes: int32 [n], index into the names
`config.clusters` of store.json, -1 for a patch without a cluster. Positions are not known, so x and
y are -1; there are no descriptors.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saghog_jax.input_pipeline.cutting.binarize import ink_mask, to_grey
from saghog_jax.input_pipeline.errors import PageError, UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.pages import image_names
from saghog_jax.input_pipeline.pages.fingerprint import SETTLED_NS
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.processes.workers import run_jobs, usable_cores
from saghog_jax.input_pipeline.store.reader import Store, read_npy
from saghog_jax.input_pipeline.store.writer import (
    FORMAT_VERSION,
    PageResult,
    assemble_shard,
    finish_store,
    record_type,
)

INKS = ("otsu", "binary")
RULE = "ready"
DIGESTS = "ready_digests.json"
# Raised whenever the same patches would give other bytes.
_VERSION = 1
_PAGES_PER_SHARD = 16
# Far more than any patch has; what is larger is not decoded.
_MAX_PIXELS = 2**22
_NAMED = 3


@dataclasses.dataclass
class ReadyPage:
    """The patches of a page: paths below the folder, and for each its cluster or -1."""

    split: str
    writer: str
    page: str
    names: list[str]
    labels: list[int]


class ReadyJob(NamedTuple):
    """All that decides a shard, and where it goes; sent to the workers."""

    folder: Path
    workspace: Path
    number: int
    first_row: int
    source: Path
    pages: list[ReadyPage]
    patch_size: int
    ink: str
    labelled: bool


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
    log: Callable[[str], None] = print,
) -> Path:
    """Returns the folder of the store of these patches, building what is missing of it.

    Args:
      folder: images of `patch_size` x `patch_size` pixels, in it and below.
      cluster_regex, writer_regex, page_regex: searched in the path below the folder; the group
        named `cluster`, `writer` or `page`, else the first group, is the value, and a group named
        `split` the split. Without the first two there are no labels and no writers.
      root: folder of the store `ready-<digest>`; the digest is over names, labels and contents.
      ink: `otsu` finds the ink of each patch by Otsu's threshold; `binary` takes the dark half of
        the values, which leaves patches that are black and white as they are.
      split: only patches of this split; all where empty or where names tell no split.
      workers: processes; 0 takes one a core. The bytes do not depend on it.
      log: called with one line at a time.

    Raises:
      UserError: no images; an expression that is malformed or does not match; an unknown split;
        not one patch that can be read and has this size; a full disk. Other patches that cannot be
        used are left out: the column `reason` of the store's manifest names them, and `log` their
        number.
    """
    check_choice("ink", ink, INKS)
    if patch_size < 1 or patch_size**2 % 8:
        raise UserError(f"patch_size={patch_size}: its square must be a multiple of 8")
    if not page_regex:
        raise UserError("data.page_regex is empty; the names of patches must tell their page")
    source, root = Path(folder).expanduser(), Path(root)
    regexes = {"cluster": cluster_regex, "writer": writer_regex, "page": page_regex}
    names, found, _ = image_names.search(source, regexes)
    names, found = _of_split(split, names, found)
    clusters = sorted({values.get("cluster", "") for values in found} - {""}, key=_by_number)
    pages = _group(names, found, clusters)
    config = {
        "rule": RULE,
        "patch_size": patch_size,
        "ink": ink,
        "pages_per_shard": _PAGES_PER_SHARD,
        "clusters": clusters,
    }
    digest = _digest(config, pages, _content_digest(source, names, root / DIGESTS))
    store = root / f"{RULE}-{digest[:12]}"
    if not (store / "store.json").exists():
        log(f"taking {len(names):,} patches of {len(pages):,} pages into {store}")
        _build(store, source, pages, config, digest, workers)
        _summarise(Store.open(store), len(names), log)
    return store


def ready_labels(store: Store) -> np.ndarray:
    """Clusters of all patches of a store of ready-cut patches, int32 [n], -1 for none.

    Raises:
      UserError: the store has no such labels.
    """
    shards = store.info["shards"]
    if "label.npy" not in shards[0]["sha256"]:
        raise UserError(
            f"{store.path} has no labels of its own; a folder of ready-cut patches gives them if "
            "data.cluster_regex is given"
        )
    labels = [read_npy(store.path / "shards" / shard["name"] / "label.npy") for shard in shards]
    return np.concatenate(labels)


def build_ready_shard(job: ReadyJob) -> int:
    """Reads and writes one shard, unless it is there already; returns its number.

    Raises:
      UserError: the shard cannot be written.
    """
    return assemble_shard(job, functools.partial(_read_page, job))


def _read_page(
    job: ReadyJob, row: int, page: ReadyPage
) -> tuple[PageResult, dict[str, np.ndarray]]:
    """One page's patches as the arrays of a shard."""
    size = job.patch_size
    patches, labels, left_out = [], [], []
    for name, label in zip(page.names, page.labels, strict=True):
        try:
            patch = load_page(job.source / name, None, _MAX_PIXELS)
        except PageError as error:
            left_out.append(f"{name}: {error}")
            continue
        height, width = patch.shape[:2]
        if (height, width) == (size, size):
            patches.append(patch)
            labels.append(label)
        else:
            left_out.append(f"{name}: {width} x {height} pixels instead of {size} x {size}")
    n = len(patches)
    reason = ""
    if left_out:
        reason = (
            f"{len(left_out)} of {len(page.names)} patches left out: "
            + "; ".join(left_out[:_NAMED])
            + ("; ..." if len(left_out) > _NAMED else "")
        )
    arrays = {
        "patches": np.array(patches, np.uint8).reshape(n, size, size, 3),
        "ink": _pack_ink(patches, job.ink, size),
        "page": np.full(n, row, np.int32),
        "x": np.full(n, -1, np.int32),
        "y": np.full(n, -1, np.int32),
    }
    if job.labelled:
        arrays["label"] = np.array(labels, np.int32)
    status = "ok" if n else "unreadable"
    return PageResult(n, status, " ".join(reason.split())), arrays


def _pack_ink(patches: list[np.ndarray], ink: str, size: int) -> np.ndarray:
    """Packed ink masks, uint8 [n, s*s/8]."""
    if not patches:
        dtype, record = record_type("ink", size)
        return np.empty((0, *record), dtype)
    grey = to_grey(np.concatenate(patches), "opencv").reshape(-1, size, size)
    if ink == "binary":
        masks = grey < 128
    else:
        masks = np.stack([ink_mask(patch, "otsu") for patch in grey])
    return np.packbits(masks.reshape(len(patches), -1), axis=1)


def _of_split(
    split: str, names: list[str], found: list[dict[str, str]]
) -> tuple[list[str], list[dict[str, str]]]:
    known = sorted({values.get("split", "") for values in found} - {""})
    if not split or not known:
        return names, found
    if split not in known:
        raise UserError(f"no patch has the split {split!r}, known: {', '.join(known)}")
    rows = [i for i, values in enumerate(found) if values.get("split", "") == split]
    return [names[i] for i in rows], [found[i] for i in rows]


def _by_number(text: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10, and numbers before other texts."""
    number = text.isdecimal()
    return not number, int(text) if number else 0, text


def _group(
    names: Iterable[str], found: Iterable[Mapping[str, str]], clusters: list[str]
) -> list[ReadyPage]:
    """Pages, sorted by split, writer and page; patches in the order of `names`."""
    index = {cluster: i for i, cluster in enumerate(clusters)}
    pages: dict[tuple[str, str, str], ReadyPage] = {}
    for name, values in zip(names, found, strict=True):
        key = (values.get("split", ""), values.get("writer", ""), values["page"])
        page = pages.get(key)
        if page is None:
            page = pages[key] = ReadyPage(*key, [], [])
        page.names.append(name)
        page.labels.append(index.get(values.get("cluster", ""), -1))
    return [pages[key] for key in sorted(pages, key=lambda key: [*map(_by_number, key)])]


def _digest(config: Mapping[str, object], pages: list[ReadyPage], contents: str) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, _VERSION, config, contents]).encode())
    for page in pages:
        digest.update(json.dumps(dataclasses.astuple(page)).encode())
    return digest.hexdigest()


def _content_digest(source: Path, names: list[str], cache: Path) -> str:
    """SHA-256 over the bytes of all patches, remembered in `cache` as long as none of them changed.

    As `fingerprint` does for pages, but with one entry a folder: patches count in millions.
    """
    stamps = hashlib.sha256(os.path.abspath(source).encode("utf-8", "surrogateescape"))
    newest = 0
    for name in names:
        with suppress(OSError):
            stat = (source / name).stat()
            stamps.update(f"{name}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
            newest = max(newest, stat.st_mtime_ns)
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
    key = stamps.hexdigest()
    if key in known:
        return known[key]
    settled = newest < time.time_ns() - SETTLED_NS
    contents = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda name: _file_digest(source / name), names):
            contents.update(part)
    known[key] = contents.hexdigest()
    if settled:
        # Whoever builds next reports a full disk or a missing permission.
        with suppress(OSError), atomic_write(cache, "w") as file:
            file.write(json.dumps(known, indent=0, sort_keys=True))
    return known[key]


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _build(
    store: Path,
    source: Path,
    pages: list[ReadyPage],
    config: Mapping[str, object],
    digest: str,
    workers: int,
) -> None:
    table = tuple(Page(p.names[0], p.writer, p.page, p.split, None, {}) for p in pages)
    try:
        (store / "shards").mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix="building-", dir=store))
    except OSError as error:
        raise UserError(f"cannot write in the folder {store}: {error.strerror}") from None
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
    try:
        for _ in run_jobs(build_ready_shard, jobs, min(workers or usable_cores(), len(jobs))):
            pass
        try:
            finish_store(store, workspace, Manifest(source, table, ()), config, digest)
        except OSError as error:
            raise UserError(f"cannot write {store / 'store.json'}: {error.strerror}") from error
        except UserError:
            # Not one patch: worth nothing, and the next attempt should look again.
            shutil.rmtree(store, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    # Left by builders that were killed.
    for left in store.glob("building-*"):
        shutil.rmtree(left, ignore_errors=True)


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
            f"{patches - len(store):,} patches left out, such as: {reasons[0]}; all pages "
            f"concerned are in {store.path / 'manifest.csv'}"
        )
