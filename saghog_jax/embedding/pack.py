"""Packs a finetuned run folder: the files that describe pages, rounded, without private paths."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.embedding import compact, sift
from saghog_jax.embedding.compact import Projection
from saghog_jax.embedding.describers import Checkpoint, describers_of
from saghog_jax.embedding.run_recipe import write_recipe
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.nested import flat
from saghog_jax.runs.checkpoint import KINDS, load_variables, params_digest, read_config
from saghog_jax.weights import packed


def pack(run_folder: Path, which: str, folder: Path) -> None:
    """Writes the packed model of a run folder.

    Variables are rounded to float16 and the projection to 8 bits, so that descriptors differ a
    little from those of the run folder.

    Args:
      which: checkpoint of the run, `last` or `best`.
      folder: where to; it must not hold another model.

    Raises:
      UserError: the run is not a finetuned one, or `folder` holds files already.
    """
    variables, meta = load_variables(run_folder, KINDS, which)
    if meta["kind"] != "writer":
        raise UserError(f"{run_folder} is no finetuned model, and only such models are packed")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files already; give another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(run_folder, which)
    recipe = checkpoint.recipe()
    words = {kind: sift.load_words(run_folder, kind) for kind in recipe.sift_weights}
    packed.save_model(folder, variables, words, meta["kind"])
    with atomic_write(folder / "config.json", "w") as file:
        file.write(json.dumps(_without_paths(read_config(run_folder)), indent=1) + "\n")
    write_recipe(replace(recipe, regions=_blank(dict(recipe.regions))), folder)
    packed.seal(folder)
    if recipe.compact:
        describers = describers_of(checkpoint, recipe.resolved())
        projection = compact.of_run(run_folder, which, recipe, describers)
        rounded = describers_of(Checkpoint(folder), recipe.resolved())
        digests = {
            part.descriptor: params_digest(describer.variables)
            for part, describer in zip(recipe.parts, rounded, strict=True)
        }
        compact.save_packed(Projection(projection.parts, digests), folder)
        packed.seal(folder)


def _without_paths(config: ConfigDict) -> dict:
    return _blank(config.to_dict())


def _blank(section: Mapping) -> dict:
    """The section with an empty text in place of each text that could name a place on a disk."""
    known = ConfigDict(dict(section))
    paths = {name: "" for name, value in flat(known.to_dict()).items() if _is_path(value)}
    known.update_from_flattened_dict(paths)
    return known.to_dict()


def _is_path(value: object) -> bool:
    return isinstance(value, str) and ("/" in value or "\\" in value or "~" in value)
