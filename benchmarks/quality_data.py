"""Manifests of benchmarks/quality.py: what is trained on, evaluated, and fitted on.

The data folder holds sets, each with a manifest.csv (`path,writer,page,split` and further columns)
and fragments.csv, boxes of its test images (`source`: the image they are from). `validation` takes
writers out of the training half and evaluates them in place of the test half. Images whose licence
(column `licence`) is not LICENCE are left out; images without a writer are trained on alone.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

# The sets, and the factor that their pages are resized by (docs/quality.md, section Scale).
SETS = {"copiste_fr": 2.0, "hist_mss": 1.0}
LICENCE = "CC BY 4.0"
TABLES = ("train", "images", "fragments", "fit-images", "fit-fragments")
# Of the training writers of a set, one in so many validates.
VALIDATION = 3
WIDTH, HEIGHT, FRAGMENTS = 320, 160, 3
_HEADER = (
    "path",
    "writer",
    "page",
    "split",
    "x0",
    "y0",
    "x1",
    "y1",
    "scale",
    "set",
    "source",
    "sheet",
)


def write_manifests(
    data: Path, folder: Path, evaluated: str, sets: Mapping[str, float] = SETS
) -> dict[str, Path]:
    """Writes train, images, fragments, fit-images and fit-fragments (.csv); returns their paths.

    The first is trained on, the next two are evaluated, the last two, of training pages, are what a
    whitening is fitted on.

    Args:
      data: the data folder.
      folder: where to.
      evaluated: `test`, or `validation`.
      sets: names, and the factors that their pages are resized by.
    """
    # Made first: paths lead out of it.
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    for name, scale in sets.items():
        images = _images(data / name, folder)
        train = [row for row in images if row["split"] == "train"]
        if evaluated == "test":
            asked = [row for row in images if row["split"] == "test"]
            fragments = _given_fragments(data / name, folder)
        else:
            chosen = _validation_writers({row["writer"] for row in train if row["writer"]})
            asked = [row for row in train if row["writer"] in chosen]
            train = [row for row in train if row["writer"] not in chosen]
            fragments = [f for row in asked for f in cut_fragments(row, folder)]
        boxes = [f for row in train for f in cut_fragments(row, folder)]
        for table, found in zip(TABLES, (train, asked, fragments, train, boxes), strict=True):
            rows[table] += [{**row, "set": name, "scale": f"{scale:g}"} for row in found]
    paths = {}
    for name, table in rows.items():
        paths[name] = folder / f"{name}.csv"
        with paths[name].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _HEADER, restval="")
            writer.writeheader()
            writer.writerows({**row, "split": ""} for row in table)
    return paths


def _images(data: Path, folder: Path) -> list[dict[str, str]]:
    return [
        _row(row, data, folder, row.get("sheet") or row["path"], row["path"])
        for row in _read(data / "manifest.csv")
        if row.get("trust") != "low" and row.get("licence", LICENCE) == LICENCE
    ]


def _given_fragments(data: Path, folder: Path) -> list[dict[str, str]]:
    if not (data / "fragments.csv").exists():
        return []
    return [
        _row(row, data, folder, row.get("sheet") or row["source"], row["source"])
        for row in _read(data / "fragments.csv")
    ]


def _row(row: dict[str, str], data: Path, folder: Path, sheet: str, source: str) -> dict[str, str]:
    """A row with its path from `folder`, and labels that differ between sets."""
    named = {
        "path": Path(os.path.relpath(data / row["path"], folder)).as_posix(),
        "writer": f"{data.name}/{row['writer']}" if row["writer"] else "",
        "source": f"{data.name}/{source}",
        "sheet": f"{data.name}/{sheet}",
    }
    return {**{key: row[key] for key in _HEADER if key in row}, **named}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _validation_writers(writers: set[str]) -> set[str]:
    return {w for w in writers if hashlib.sha256(w.encode()).digest()[0] % VALIDATION == 0}


def cut_fragments(row: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """Up to three separate boxes of an image, drawn as those of fragments.csv were.

    Those with an ink share from .04 to .5 by Otsu's threshold; the draw depends on the path alone.
    """
    grey = cv2.imread(str(folder / row["path"]), cv2.IMREAD_GRAYSCALE)
    h, w = grey.shape
    if h < HEIGHT or w < WIDTH:
        return []
    _, ink = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)
    total = cv2.integral(ink)
    seed = hashlib.sha256(row["source"].split("/", 1)[1].encode()).hexdigest()[:8]
    rng = np.random.default_rng(int(seed, 16))
    boxes: list[tuple[int, int]] = []
    for _ in range(200):
        x, y = int(rng.integers(0, w - WIDTH + 1)), int(rng.integers(0, h - HEIGHT + 1))
        below, right = y + HEIGHT, x + WIDTH
        count = total[below, right] - total[y, right] - total[below, x] + total[y, x]
        apart = all(abs(x - a) >= WIDTH or abs(y - b) >= HEIGHT for a, b in boxes)
        if len(boxes) < FRAGMENTS and 0.04 < count / (WIDTH * HEIGHT) < 0.5 and apart:
            boxes.append((x, y))
    return [
        {**row, "page": f"{row['page']}_f{i}", "x0": x, "y0": y, "x1": x + WIDTH, "y1": y + HEIGHT}
        for i, (x, y) in enumerate(boxes)
    ]
