"""Writes a patch store: shard by shard, then the files about all shards; see `reader`."""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest

FORMAT = "saghog_jax patch store"
# Increased whenever the layout changes, or the same pages and rule would give other bytes.
FORMAT_VERSION = 1
# Columns that a store appends to the columns of the manifest.
STATUS_COLUMNS = ("n_patches", "status", "reason")
# Libraries whose version can change the bytes of patches.
CUTTING_LIBRARIES = ("doxapy", "numpy", "opencv-python-headless", "pillow")


class PageResult(NamedTuple):
    """The outcome for a page: `status` as in `reader`; `reason` says why it is not `ok`."""

    n_patches: int
    status: str
    reason: str


def library_versions() -> dict[str, str]:
    """Versions of the libraries that cut patches."""
    return {name: version(name) for name in CUTTING_LIBRARIES}


def record_type(key: str, patch_size: int) -> tuple[np.dtype, tuple[int, ...]]:
    """Dtype and shape of one record of the array file `key`."""
    shapes = {
        "patches": (patch_size, patch_size, 3),
        "ink": (patch_size**2 // 8,),
        "descriptors": (128,),
    }
    return np.dtype(np.uint8 if key in shapes else np.int32), shapes.get(key, ())


def shard_name(number: int) -> str:
    """Folder name of shard `number` below `shards/`."""
    return f"{number:05d}"


def read_shard(folder: Path) -> dict[str, Any] | None:
    """Reads `shard.json` of a shard; None if it is missing or other library versions cut it."""
    try:
        info = json.loads((folder / "shard.json").read_text())
    except FileNotFoundError:
        return None
    if info["version"] != FORMAT_VERSION or info["libraries"] != library_versions():
        return None
    return info


def write_shard(
    shards: Path,
    workspace: Path,
    name: str,
    arrays: Mapping[str, Sequence[np.ndarray]],
    pages: Sequence[PageResult],
) -> None:
    """Writes a shard into the workspace, flushes it to the disk, then renames it into the store.

    If another builder has finished the same shard meanwhile, that shard (of equal bytes) is kept.

    Args:
      shards: the folder `shards/` of the store.
      workspace: a folder of this builder on the same file system, for the unfinished shard.
      name: from `shard_name`.
      arrays: parts of every array file, concatenated along the first axis.
      pages: one result per page of the shard, in order.

    Raises:
      OSError: the files cannot be written, for example because the disk is full.
    """
    # A new folder for every attempt: an earlier attempt may have been killed or still be running.
    temporary = workspace / f"{name}-{secrets.token_hex(8)}"
    try:
        temporary.mkdir(parents=True)
        _write_arrays(temporary, arrays, pages)
        _give_name(temporary, shards / name)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_arrays(
    folder: Path, arrays: Mapping[str, Sequence[np.ndarray]], pages: Sequence[PageResult]
) -> None:
    checksums = {
        f"{key}.npy": _write_npy(folder / f"{key}.npy", np.concatenate(parts))
        for key, parts in arrays.items()
    }
    info = {
        "version": FORMAT_VERSION,
        "libraries": library_versions(),
        "n_patches": sum(page.n_patches for page in pages),
        "pages": [page._asdict() for page in pages],
        "sha256": checksums,
    }
    write_file(folder / "shard.json", _json_bytes(info))
    _sync_folder(folder)


def _give_name(temporary: Path, shard: Path) -> None:
    """Renames a written shard, unless an equal shard of this name exists already."""
    if shard.exists() and read_shard(shard) is None:
        os.rename(shard, temporary.with_name(f"old-{temporary.name}"))
    try:
        os.rename(temporary, shard)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(temporary)
    _sync_folder(shard.parent)


def finish_store(
    folder: Path, workspace: Path, manifest: Manifest, config: Mapping[str, Any], digest: str
) -> None:
    """Writes `manifest.csv` and, last of all, `store.json` once all shards are in `folder`.

    Raises:
      UserError: no page gave a patch.
    """
    results: list[PageResult] = []
    shards = []
    for number in range(-(-len(manifest) // config["pages_per_shard"])):
        name = shard_name(number)
        info = read_shard(folder / "shards" / name)
        if info is None:
            raise RuntimeError(f"shard {name} of {folder} vanished while it was built")
        results.extend(PageResult(**page) for page in info["pages"])
        shards.append({"name": name, "n_patches": info["n_patches"], "sha256": info["sha256"]})
    if not any(result.n_patches for result in results):
        reasons = [f"{p.page_id}: {r.reason}" for p, r in zip(manifest.pages, results, strict=True)]
        raise UserError(
            f"none of the {len(results)} pages gave a patch, so no store is written; "
            + " ".join("; ".join(reasons[:3]).split())
        )
    workspace.mkdir(exist_ok=True)
    _with_results(manifest, results).write(workspace / "manifest.csv")
    table = (workspace / "manifest.csv").read_bytes()
    info = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "digest": digest,
        "config": dict(config),
        "libraries": library_versions(),
        # Folder of the pages when they were cut; paths in manifest.csv are relative to it.
        "pages_root": str(manifest.root.resolve()),
        "counts": {
            "pages": len(results),
            "patches": sum(r.n_patches for r in results),
            "empty": sum(r.status == "empty" for r in results),
            "unreadable": sum(r.status == "unreadable" for r in results),
            # Further statuses occur in stores of pages with masks.
            **Counter(r.status for r in results if r.status not in ("ok", "empty", "unreadable")),
        },
        "shards": shards,
        "sha256": {"manifest.csv": hashlib.sha256(table).hexdigest()},
    }
    for name, data in (("manifest.csv", table), ("store.json", _json_bytes(info))):
        write_file(workspace / f"new-{name}", data)
        os.replace(workspace / f"new-{name}", folder / name)
        _sync_folder(folder)


def _with_results(manifest: Manifest, results: Sequence[PageResult]) -> Manifest:
    """The manifest with the columns `n_patches`, `status` and `reason`."""
    pages = tuple(
        page._replace(
            extra={
                **page.extra,
                "n_patches": str(result.n_patches),
                "status": result.status,
                "reason": result.reason,
            }
        )
        for page, result in zip(manifest.pages, results, strict=True)
    )
    columns = tuple(c for c in manifest.columns if c not in STATUS_COLUMNS) + STATUS_COLUMNS
    return replace(manifest, pages=pages, columns=columns)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_npy(path: Path, array: np.ndarray) -> str:
    """Writes an array as .npy and returns the file's SHA-256."""
    # np.save reports a full disk without an error number, and the file would have to be read again
    # for its checksum.
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (header.getvalue(), array.data.cast("B") if array.size else b""):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def assemble_shard(
    job: Any, read_page: Callable[[int, Any], tuple[PageResult, dict[str, np.ndarray]]]
) -> int:
    """Writes the shard of a job, unless the shard exists already; returns its number.

    Args:
      job: has `folder`, `workspace`, `number`, `first_row` and `pages`.
      read_page: given the row of a page and the page, returns its result and its arrays.

    Raises:
      UserError: the shard cannot be written.
    """
    shards, name = job.folder / "shards", shard_name(job.number)
    if read_shard(shards / name) is not None:
        return job.number
    parts: dict[str, list[np.ndarray]] = {}
    results = []
    for row, page in enumerate(job.pages, start=job.first_row):
        result, arrays = read_page(row, page)
        results.append(result)
        for key, array in arrays.items():
            parts.setdefault(key, []).append(array)
    try:
        write_shard(shards, job.workspace, name, parts, results)
    except OSError as error:
        # Another builder may have removed the workspace and finished the shard itself.
        if read_shard(shards / name) is None:
            raise UserError(f"cannot write {shards / name}: {error.strerror}") from error
    return job.number
