"""Small pages and small stores for the tests of the input pipeline."""

import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.writer import PageResult, finish_store, shard_name, write_shard


def draw_page(seed: int, size: tuple[int, int] = (160, 200)) -> np.ndarray:
    """A page of random strokes, uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    page = np.full((*size, 3), 235, np.uint8)
    for row in range(20, size[0] - 10, 24):
        points = np.stack(
            [np.linspace(10, size[1] - 10, 40), row + rng.normal(0, 6, 40)], axis=1
        ).astype(np.int32)
        cv2.polylines(page, [points], False, (40, 30, 60), 2)
    return page


def write_pages(folder: Path, count: int, writers: int = 3) -> Path:
    """Pages p00.png, ... and their manifest.csv, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        cv2.imwrite(str(folder / f"p{i:02d}.png"), draw_page(i))
        rows.append({"path": f"p{i:02d}.png", "writer": f"w{i % writers}", "page": str(i)})
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "writer", "page"])
        table.writeheader()
        table.writerows(rows)
    return folder / "manifest.csv"


def sections(pages: Path, root: Path, rule: str = "pretrain") -> tuple[ConfigDict, ConfigDict]:
    """Data and store sections for these pages: one process, two pages per shard."""
    data, store = common.data_config(""), common.store_config(rule)
    data.pages, data.cache, store.root = str(pages), str(root), str(root)
    store.workers, store.pages_per_shard, store.max_patches_per_page = 1, 2, 20
    return data, store


def make_store(
    folder: Path, patches_a_page: list[int], pages_per_shard: int = 2, seed: int = 0
) -> tuple[Store, dict[str, np.ndarray]]:
    """A store of random bytes, with descriptors, and its arrays."""
    rng = np.random.default_rng(seed)
    workspace = folder / "building"
    (folder / "shards").mkdir(parents=True)
    everything: dict[str, list[np.ndarray]] = {}
    for number, first in enumerate(range(0, len(patches_a_page), pages_per_shard)):
        counts = patches_a_page[first : first + pages_per_shard]
        n = sum(counts)
        rows = np.arange(first, first + len(counts), dtype=np.int32)
        arrays = {
            "patches": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            "ink": rng.integers(0, 256, (n, 128), np.uint8),
            "page": np.repeat(rows, counts),
            "x": rng.integers(0, 900, n, np.int32),
            "y": rng.integers(0, 900, n, np.int32),
            "descriptors": rng.integers(0, 256, (n, 128), np.uint8),
        }
        results = [
            PageResult(c, "ok", "") if c else PageResult(0, "empty", "a blank page") for c in counts
        ]
        write_shard(
            folder / "shards",
            workspace,
            shard_name(number),
            {k: [v] for k, v in arrays.items()},
            results,
        )
        for key, array in arrays.items():
            everything.setdefault(key, []).append(array)
    pages = tuple(
        Page(f"p{i}.png", f"w{i % 3}" if i % 4 else "", str(i), "", None, {})
        for i in range(len(patches_a_page))
    )
    config = {"rule": "offline", "patch_size": 32, "pages_per_shard": pages_per_shard}
    finish_store(folder, workspace, Manifest(Path("pages"), pages, ()), config, "digest")
    return Store.open(folder), {k: np.concatenate(v) for k, v in everything.items()}


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
