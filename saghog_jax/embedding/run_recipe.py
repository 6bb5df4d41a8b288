"""The recipe of page descriptors of a run folder: its file, and what finetuning writes there."""

import json
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.embedding.recipe import PageRecipe, recipe_parts
from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.cutting.rules import published_rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write

FILE = "recipe.json"


def default_recipe(descriptor: str, source: str) -> PageRecipe:
    """The recipe of a checkpoint without one: power .4, all patches of a page at its own scale.

    Args:
      descriptor: `netrvlad` or `cls`.
      source: what the model reads, `page` or `binary`.
    """
    return PageRecipe(parts=recipe_parts(descriptor, 0.4, {}), rule=page_rule(), input=source)


def page_rule() -> Rule:
    """How pages are cut to be embedded, unless a recipe says otherwise.

    The published rule `eval`, binarised by Otsu as in finetuning: on training pages a little better
    than ISauvola.
    """
    return replace(published_rule("eval"), binarization="otsu", max_patches_per_page=-1)


def finetuned_recipe(config: ConfigDict) -> PageRecipe:
    """The recipe of a finetuning config (its section `page`), for the collection it is trained on.

    Raises:
      UserError: a choice that is not possible.
    """
    page = config.page
    rule = replace(
        page_rule(),
        patch_size=config.store.patch_size,
        scale=config.store.scale,
        **_keypoint_settings(config.store),
        keypoint_on_ink=page.keypoint_on_ink,
        max_patches_per_page=page.max_patches_per_page,
    )
    return PageRecipe(
        parts=recipe_parts("netrvlad", page.power, page.sift),
        rule=rule,
        scales=tuple(page.scales),
        input=config.input,
        max_pixels=config.data.max_pixels,
        regions=config.regions.to_dict(),
        # Ready-cut patches are no pages, to which the projection could be fitted.
        compact=0 if config.data.cluster_regex else page.compact.components,
        full=_full_weights(config),
    )


def _full_weights(config: ConfigDict) -> dict[str, float]:
    """The weights of pages with much writing; empty where they are those of all pages."""
    weights = config.page.compact.full.to_dict()
    if config.data.cluster_regex or not config.page.compact.components or not any(weights.values()):
        return {}
    return weights


def _keypoint_settings(store: ConfigDict) -> dict[str, object]:
    """The fields of a store that say where keypoints are, which pages are embedded with too.

    The published rules of training and embedding find keypoints alike; one pass may differ.
    """
    if not store.detect_scale:
        return {}
    names = ("detect_scale", "detect_on", "sift_sigma")
    return {name: store[name] for name in names}


def write_recipe(recipe: PageRecipe, run_folder: Path) -> None:
    """Keeps the recipe in a run folder."""
    with atomic_write(run_folder / FILE, "w") as file:
        file.write(json.dumps(recipe.to_json(), indent=2) + "\n")


def read_recipe(run_folder: Path) -> PageRecipe | None:
    """The recipe of a run folder; None where it has none (pretrain, convert, older versions).

    Raises:
      UserError: a damaged file.
    """
    path = run_folder / FILE
    if not path.exists():
        return None
    try:
        return PageRecipe.from_json(json.loads(path.read_text()))
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
