"""What identifies an embedding: the digest of everything that decides its descriptors."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.embedding.describers import PatchDescriber
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.input_pipeline.pages.manifest import Manifest
from saghog_jax.input_pipeline.regions import page_check
from saghog_jax.input_pipeline.regions.masks import RegionMasks

# Version of the sums of VLAD vectors; 2 takes explicit residuals next to a centroid.
_VLAD_VERSION = 2


def digest(
    recipe: PageRecipe,
    describers: Sequence[PatchDescriber],
    weights: Sequence[str],
    manifest: Manifest,
    masks: RegionMasks | None,
    config: ConfigDict,
) -> str:
    """SHA-256 over page contents, recipe, weights, masks and the whitening of patches.

    Names and labels of pages do not count: they can be corrected without embedding again.

    Args:
      recipe: with a resolved precision.
      weights: digests of the weights of the describers.
      config: of configs/embed.py.
    """
    contents = manifest.contents()
    recipe = replace(recipe, regions={})
    decides = {
        "pages": [[p.path, p.box, p.scale, p.polarity, contents[p.path]] for p in manifest.pages],
        "page_check": page_check.VERSION,
        "recipe": recipe.to_json(),
        "describers": [[d.name, d.input, w] for d, w in zip(describers, weights, strict=True)],
        "patch_whitening": _whitening(config),
        **({"vlad": _VLAD_VERSION} if any(d.descriptor != "cls" for d in describers) else {}),
        **({"regions": [masks.identity, masks.digests]} if masks else {}),
    }
    text = json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _whitening(config: ConfigDict) -> list:
    section = config.patch_whitening
    if section.mode == "load":
        # The content of the file, not its place.
        path = Path(section.file)
        return ["load", hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""]
    return ["fit", section.dim, section.samples] if section.mode == "fit" else []
