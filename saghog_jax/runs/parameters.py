"""Loaded parameters in the place of a model's own."""

from pathlib import Path

import jax

from saghog_jax.devices.sharding import shard_like
from saghog_jax.input_pipeline.errors import UserError


def same_shapes(first: dict, second: dict) -> bool:
    """Whether two trees of arrays have the same names and shapes."""
    shapes = [jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (first, second)]
    return shapes[0] == shapes[1]


def matching_parameters(loaded: dict, model: dict, source: Path) -> dict:
    """Loaded values of the parameters of a model, with the shardings of the model.

    Args:
      loaded: parameters on the host, such as {"encoder": ..., "decoder": ...}; may have more names.
      model: sharded parameters of the model that the loaded values replace.
      source: run folder of the loaded parameters, for messages.

    Raises:
      UserError: names or shapes differ.
    """
    for name, tree in model.items():
        if not same_shapes(loaded[name], tree):
            raise UserError(
                f"the {name} in {source} does not fit this config's; the model sizes must be those "
                f"of {source / 'config.json'}"
            )
    return shard_like({name: loaded[name] for name in model}, model)
