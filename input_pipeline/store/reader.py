"""The patch store: its format, and the memory-mapped reader.

    FOLDER/
      store.json              written last: a folder without this file is an unfinished store
      manifest.csv            the pages; three columns are appended: n_patches, status (`ok`,
                              `empty`, `unreadable`, or the status of the page's mask, see
                              `regions.page_mask`) and reason; row i is page i of the index
      shards/00000/           a fixed group of pages, complete as soon as it has this name
        patches.npy           uint8 [n, s, s, 3], RGB
        ink.npy               uint8 [n, s*s/8], np.packbits of the ink mask, row-major, 1 = ink
        page.npy x.npy y.npy  int32 [n], row of manifest.csv and keypoint in pixels
        descriptors.npy       uint8 [n, 128], SIFT, only if the rule keeps descriptors
        label.npy             int32 [n], only in a store of ready-cut patches with labels
        shard.json            the result for each page, and the SHA-256 of every array file
      labels/DIGEST/          pseudo labels, see `pseudo_labels`

The bytes of a store do not depend on time, number of processes or order of building. The arrays can
be read with numpy alone. Patch i of the store is patch i of the concatenated shards.
"""

import itertools
import json
import math
import os
import resource
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import Manifest, read_csv
from saghog_jax.input_pipeline.store.writer import FORMAT, FORMAT_VERSION, record_type


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Reads or memory-maps an array file.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or missing ({reason})") from None


def read_store_json(folder: Path) -> dict[str, Any]:
    """Reads and checks `store.json`.

    Raises:
      UserError: the folder holds no finished store, or a store of another format or version.
    """
    path = folder / "store.json"
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        state = (
            "holds an unfinished patch store"
            if (folder / "shards").is_dir()
            else ("holds no patch store" if folder.is_dir() else "does not exist")
        )
        raise UserError(
            f"{folder} {state} (no store.json); "
            "`python -m saghog_jax.main --config=configs/prepare.py` makes or finishes stores"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}; delete {folder} and prepare again") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a patch store of this program")
    if info["version"] != FORMAT_VERSION:
        raise UserError(
            f"{folder} is a patch store of format version {info['version']}, this program reads "
            f"version {FORMAT_VERSION}; prepare the pages again, or use the program that cut it"
        )
    return info


class Store:
    """A finished patch store, memory-mapped. Several threads may read it at once."""

    def __init__(self, path: Path, info: Mapping[str, Any], manifest: Manifest) -> None:
        """Use `Store.open`."""
        self.path = path
        self.info = info
        self.manifest = manifest
        self._counts = [shard["n_patches"] for shard in info["shards"]]
        self._offsets = np.concatenate([[0], np.cumsum(self._counts, dtype=np.int64)])
        self.patch_size: int = info["config"]["patch_size"]
        self._patches = self._map("patches")
        self._ink = self._map("ink")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Store":
        """Opens a store.

        Raises:
          UserError: `path` is not a finished store of this format version, or one of its files has
            the wrong size. The contents are checked by `configs/verify.py`.
        """
        folder = Path(path)
        info = read_store_json(folder)
        manifest = read_csv(folder / "manifest.csv", root=Path(info["pages_root"]))
        if len(manifest) != info["counts"]["pages"]:
            raise UserError(
                f"{folder / 'manifest.csv'} lists {len(manifest)} pages, store.json "
                f"{info['counts']['pages']}; delete {folder} and prepare again"
            )
        return cls(folder, info, manifest)

    def __len__(self) -> int:
        """Number of patches."""
        return int(self._offsets[-1])

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """Position of each patch: `page` (row of `manifest`), `x`, `y`, int32 [n]; in memory."""
        return {key: np.concatenate(self._map(key))[:, 0] for key in ("page", "x", "y")}

    @cached_property
    def rows_of_pages(self) -> list[np.ndarray]:
        """Patches of each page of `manifest`: int64 indices, ascending; empty if it was skipped."""
        order = np.argsort(self.index["page"], kind="stable")
        pages = np.arange(len(self.manifest) + 1)
        starts = np.searchsorted(self.index["page"][order], pages)
        return [order[a:b] for a, b in itertools.pairwise(starts)]

    @cached_property
    def writer_ids(self) -> np.ndarray:
        """Writer of each patch, int32 [n]: index in `manifest.writers`, -1 if unknown."""
        ids = {writer: i for i, writer in enumerate(self.manifest.writers)}
        of_page = np.array([ids.get(page.writer, -1) for page in self.manifest.pages], np.int32)
        return of_page[self.index["page"]]

    @cached_property
    def skipped(self) -> list[tuple[str, str]]:
        """Pages without a patch, as (page_id, reason)."""
        return [
            (page.page_id, page.extra["reason"])
            for page in self.manifest.pages
            if page.extra["status"] != "ok"
        ]

    @property
    def has_descriptors(self) -> bool:
        """Whether the store holds SIFT descriptors, which depends on its rule."""
        return "descriptors.npy" in self.info["shards"][0]["sha256"]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Patches and ink masks of `indices` [b], in this order.

        Returns:
          `patches` uint8 [b, s, s, 3] and `ink` uint8 [b, s*s/8].
        """
        size = self.patch_size
        patches, ink = self._take(indices, self._patches, self._ink)
        return {"patches": patches.reshape(-1, size, size, 3), "ink": ink}

    def descriptors(self, indices: np.ndarray) -> np.ndarray:
        """SIFT descriptors of `indices` [b], uint8 [b, 128].

        Raises:
          UserError: the store's rule keeps no descriptors.
        """
        if not self.has_descriptors:
            raise UserError(
                f"{self.path} was cut by the rule {self.info['config']['rule']!r}, which keeps no "
                "descriptors; the rule 'offline' does"
            )
        return self._take(indices, self._descriptors)[0]

    @cached_property
    def _descriptors(self) -> list[np.ndarray]:
        return self._map("descriptors")

    def _map(self, key: str) -> list[np.ndarray]:
        """Memory-maps one array of every shard, checking shapes."""
        _allow_open_files(len(self._counts))
        maps = []
        for shard in self.info["shards"]:
            path = self.path / "shards" / shard["name"] / f"{key}.npy"
            try:
                array = read_npy(path, mmap_mode="r" if shard["n_patches"] else None)
            except UserError as error:
                raise UserError(
                    f"{error}; --config=configs/verify.py tells how to repair the store"
                ) from None
            dtype, record = record_type(key, self.patch_size)
            if (array.shape, array.dtype) != ((shard["n_patches"], *record), dtype):
                raise UserError(
                    f"{path} holds {array.dtype} {list(array.shape)}, expected "
                    f"{dtype} {[shard['n_patches'], *record]}; delete {self.path} and prepare again"
                )
            # Indexing a np.memmap is slow: it costs more than copying the rows. A plain view of it
            # has no such overhead.
            maps.append(array.view(np.ndarray).reshape(len(array), math.prod(record)))
        return maps

    def _take(self, indices: np.ndarray, *arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Rows `indices` of each of `arrays` (lists of shards [n, bytes]), in this order."""
        indices = np.asarray(indices)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"patch indices must lie in [0, {len(self)})")
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        bounds = np.searchsorted(ordered, self._offsets)
        shards = np.flatnonzero(np.diff(bounds))
        outs = [np.empty((len(indices), a[0].shape[1]), a[0].dtype) for a in arrays]
        for shard in shards.tolist():
            part = slice(bounds[shard], bounds[shard + 1])
            rows = ordered[part] - self._offsets[shard]
            for out, array in zip(outs, arrays, strict=True):
                out[order[part]] = array[shard][rows]
        return outs


def _allow_open_files(shards: int) -> None:
    """Increases this process's soft limit of open files: every memory map keeps a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Three maps per shard (patches, ink, descriptors), and 512 files for everything else.
    needed = 3 * shards + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UserError(
                f"a store of {shards} shards needs {needed} open files, this machine allows {hard};"
                " raise `ulimit -Hn`, or prepare with a larger --config.store.pages_per_shard"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
