"""What an embedding says about its recipe before it starts."""

import logging

from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.embedding.describers import Checkpoint
from saghog_jax.embedding.recipe import PageRecipe

logger = logging.getLogger(__name__)


def note_long_descriptors(known: PageRecipe, recipe: PageRecipe, config: ConfigDict) -> None:
    """Says why the pages get long descriptors although the run has a projection.

    Args:
      known: the recipe of the run.
      recipe: the recipe that is followed.
      config: of configs/embed.py.
    """
    if known.compact and not recipe.compact and config.compact is None and distributed.is_main():
        unfitted = recipe.unfitted_beside(known, config.patch_whitening.mode != "none")
        logger.warning(
            f"note: long descriptors: the compact ones were fitted with another {unfitted}"
        )


def note_other_scale(checkpoint: Checkpoint, recipe: PageRecipe) -> None:
    """Says that pages are resized by another factor than those of the training."""
    trained, scale = checkpoint.trained_scale, recipe.rule.scale
    if trained is not None and trained != scale and distributed.is_main():
        logger.warning(
            f"note: these pages are resized by {scale:g}, those of the training by {trained:g} "
            "(times the column `scale` of its table, if it has one)"
        )
