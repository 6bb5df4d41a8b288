"""Embeddings folders with planted writers, for the tests of everything behind `embed`."""

from pathlib import Path

import numpy as np
from PIL import Image

from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.retrieval.embeddings import Embeddings, load_embeddings
from saghog_jax.retrieval.embeddings_writer import save_embeddings


def page(path, writer="", name="", split="test", box=None, extra=None) -> Page:
    """A row of a manifest."""
    return Page(path, writer, name, split, box, extra or {})


def pages_of(writers: int, each: int) -> list[Page]:
    """`each` pages by each writer, two pages a sheet."""
    return [
        page(f"w{w:02d}/p{i}.png", f"w{w:02d}", str(i), extra={"sheet": f"{w}-{i // 2}"})
        for w in range(writers)
        for i in range(each)
    ]


def planted(
    folder: Path,
    pages: list[Page],
    noise: float = 0.7,
    dim: int = 16,
    seed: int = 0,
    images: bool = False,
    dtype: str = "float32",
    **meta: object,
) -> Embeddings:
    """Writes unit vectors around one direction a writer; `noise` 0 makes every ranking right."""
    rng = np.random.default_rng(seed)
    names = sorted({page.writer for page in pages})
    centres = dict(zip(names, np.random.default_rng(99).standard_normal((len(names), dim))))
    x = np.stack([centres[page.writer] for page in pages])
    x = x + noise * rng.standard_normal(x.shape)
    root = folder.parent / "pages"
    if images:
        for i, path in enumerate(sorted({page.path for page in pages})):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            grey = np.full((40, 60), 90 + i % 100, np.uint8)
            Image.fromarray(grey).save(root / path, format="PNG")
    save_embeddings(folder, l2_normalize(x), pages, root, {"checkpoint": "abc", **meta}, dtype)
    return load_embeddings(folder)
