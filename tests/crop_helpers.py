"""Pages and a recipe for the tests of pretraining cut on the fly."""

from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict
from store_helpers import draw_page, sections, write_pages

from saghog_jax.input_pipeline.batches.crops import Recipe
from saghog_jax.input_pipeline.pages.manifest import read_csv

SIZE, PER_SLOT = 96, 8
BLANK = np.full((160, 200, 3), 235, np.uint8)


def sparse_page() -> np.ndarray:
    """A page with writing in one corner alone: most crops of it are blank."""
    page = np.full((480, 600, 3), 235, np.uint8)
    page[:160, :200] = written_page(0)
    return page


def written_page(number: int) -> np.ndarray:
    """Page `number` of write_pages in RGB; OpenCV writes BGR."""
    return draw_page(number)[..., ::-1]


def make_recipe(manifest_csv: Path) -> Recipe:
    """A recipe for slots of PER_SLOT patches from crops of SIZE pixels."""
    data, store = sections(manifest_csv, "unused")
    section = ConfigDict({"size": SIZE, "patches_per_page": PER_SLOT, "gray": 0.2, "binarize": 0.2})
    return Recipe.from_config(read_csv(manifest_csv), data, store, section, seed=0)


def plain_recipe(folder: Path) -> Recipe:
    """A recipe for five good pages."""
    return make_recipe(write_pages(folder, 5))


def mixed_recipe(folder: Path) -> Recipe:
    """A recipe for seven pages: 1 and 4 are nearly blank, 2 and 5 cannot be read."""
    manifest_csv = write_pages(folder, 7)
    for i in (1, 4):
        cv2.imwrite(str(folder / f"p{i:02d}.png"), sparse_page()[..., ::-1])
    (folder / "p02.png").write_bytes(b"no image")
    (folder / "p05.png").write_bytes((folder / "p00.png").read_bytes()[:300])
    return make_recipe(manifest_csv)
