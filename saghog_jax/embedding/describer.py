"""What a model makes of each single patch of a page, where `embed` keeps only their sums."""

import jax
import numpy as np

from saghog_jax.embedding.describers import Model, Seen
from saghog_jax.evidence.attribution import PagePatches
from saghog_jax.input_pipeline.cutting.patches import Cut
from saghog_jax.models import inputs

# Patches a device call.
_BATCH = 256


class Describer:
    """Features and assignments of patches by one model, in batches of one compiled shape."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._compute = jax.jit(self._on_device)

    def page(self, cut: Cut, side: int) -> PagePatches:
        """The patches of a page, `side` pixels wide, with float32 features and assignments."""
        parts = []
        # Once at least, so that a page without a patch has arrays of the right width.
        for first in range(0, max(1, len(cut.patches)), _BATCH):
            batch = {name: array[first:][:_BATCH] for name, array in cut.shipped().items()}
            n = len(batch["ink"])
            blank = {k: np.zeros((_BATCH, *v.shape[1:]), v.dtype) for k, v in batch.items()}
            for name, array in batch.items():
                blank[name][:n] = array
            made = self._compute(self._model.variables, blank)
            parts.append([np.asarray(array, np.float32)[:n] for array in made])
        x, assignment = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return PagePatches(x, assignment, np.stack([cut.x, cut.y], axis=1), side)

    def _on_device(self, variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        images, binary = inputs.decode(batch)
        images = inputs.model_input(images, binary, self._model.input)
        return self._model.describe(
            variables, Seen(inputs.normalize(images), binary, batch.get("descriptors"))
        )
