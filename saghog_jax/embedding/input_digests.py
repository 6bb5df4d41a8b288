"""What identifies an embedding and its pages: digests of everything that decides descriptors."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from saghog_jax.embedding.describers import PatchDescriber
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions import page_check
from saghog_jax.input_pipeline.regions.masks import RegionMasks

# Version of the sums of VLAD vectors; 2 takes explicit residuals next to a centroid.
_VLAD_VERSION = 2


class InputDigests(NamedTuple):
    """SHA-256 digests of the input of an embedding.

    whole: of everything that decides the descriptors and their order.
    settings: of everything but the pages; `whole` where the descriptors of a page depend on the
      other pages or on its row.
    pages: of each page: content, box, scale, polarity and mask. Its name and labels do not count.
    """

    whole: str
    settings: str
    pages: list[str]


def digests(
    recipe: PageRecipe,
    describers: Sequence[PatchDescriber],
    weights: Sequence[str],
    manifest: Manifest,
    masks: RegionMasks | None,
    config: ConfigDict,
    projection: str = "",
) -> InputDigests:
    """The digests of page contents, recipe, weights, masks and the whitening of patches.

    Labels of pages do not count: they can be corrected without embedding again.

    Args:
      recipe: with a resolved precision.
      weights: digests of the weights of the describers.
      config: of configs/embed.py.
      projection: digest of the projection of compact descriptors.
    """
    recipe = replace(recipe, regions={})
    settings = {
        "page_check": page_check.VERSION,
        "recipe": recipe.to_json(),
        "describers": [[d.name, d.input, w] for d, w in zip(describers, weights, strict=True)],
        "patch_whitening": _whitening(config),
        **({"vlad": _VLAD_VERSION} if any(d.descriptor != "cls" for d in describers) else {}),
        **({"regions": masks.identity} if masks else {}),
        **({"projection": projection} if projection else {}),
    }
    pages = _page_digests(manifest, masks)
    whole = _sha256({**settings, "pages": pages, "names": [page.path for page in manifest.pages]})
    # A random choice of patches is seeded by the row of the page.
    alone = config.patch_whitening.mode != "fit" and recipe.rule.pick != "random"
    return InputDigests(whole, _sha256(settings) if alone else whole, pages)


def of_folder(folder: Path) -> str:
    """`InputDigests.whole` of the embeddings in a folder; empty if there are none."""
    try:
        return json.loads((folder / "meta.json").read_text()).get("input_digest", "")
    except (OSError, ValueError):
        return ""


def _page_digests(manifest: Manifest, masks: RegionMasks | None) -> list[str]:
    contents = manifest.contents()
    of_masks = masks.digests if masks else [""] * len(manifest)
    return [
        # A file that cannot be read is no other page; its name keeps it apart.
        _sha256([contents[p.path] or p.path, p.box, p.scale, p.polarity, mask])
        for p, mask in zip(manifest.pages, of_masks, strict=True)
    ]


def _sha256(content: object) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _whitening(config: ConfigDict) -> list:
    section = config.patch_whitening
    if section.mode == "load":
        # The content of the file, not its place.
        path = Path(section.file)
        return ["load", hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""]
    return ["fit", section.dim, section.samples] if section.mode == "fit" else []
