"""What describes patches: a checkpoint's model, and SIFT with the visual words of a run folder.

Axis letters: b patches of a batch, s pages of a batch, v clusters, d width of a feature.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed
from saghog_jax.devices.precision import operand_dtype
from saghog_jax.embedding import sift
from saghog_jax.embedding.recipe import PageRecipe
from saghog_jax.embedding.run_recipe import default_recipe, read_recipe
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.models.build import (
    init_variables,
    init_writer_variables,
    make_encoder,
    make_writer_model,
)
from saghog_jax.models.netrvlad import page_sum
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config

logger = logging.getLogger(__name__)

# Further descriptors of the same patches that `embed` can write beside the recipe's.
COMPARE = ("random", "pretrained", *(sift.descriptor_name(kind) for kind in sift.KINDS))


class PatchBatch(NamedTuple):
    """A batch of patches as describers read it.

    images: float32 [b, h, w, c], normalised.
    binary: float32 [b, h, w, 1], 1 on paper and 0 on ink.
    descriptors: uint8 [b, 128], raw SIFT of the page at the keypoints; None where no describer
      reads them.
    """

    images: jax.Array
    binary: jax.Array
    descriptors: jax.Array | None = None


@dataclass(frozen=True)
class PatchDescriber:
    """Turns a batch of patches into features, and into sums of descriptors by page.

    name: in tables and of folders, such as `finetuned`.
    descriptor: its kind, one of `recipe.DESCRIPTORS`.
    input: what it reads, `page` or `binary`.
    describe: `describe(variables, batch)` returns features and assignment as `netrvlad.vlad` reads
      them with `centroids` [v, d]. CLS features are VLAD of one cluster at zero.
    sums: `sums(variables, batch, segments)` takes weights [s, b] too, and returns [s, v * d].
    """

    name: str
    descriptor: str
    input: str
    variables: dict
    describe: Callable[[dict, PatchBatch], tuple[jax.Array, jax.Array]]
    sums: Callable[[dict, PatchBatch, jax.Array], jax.Array]
    centroids: np.ndarray
    intra_normalize: bool

    @property
    def dim(self) -> int:
        """Width of a page descriptor."""
        return self.centroids.size


def cls_describer(name: str, run: ConfigDict, variables: dict, source: str) -> PatchDescriber:
    """L2-normalised CLS features of an encoder.

    Args:
      run: config of the encoder's run.
      source: what the encoder reads, `page` or `binary`.
    """
    kind = run.encoder if run.stage == "finetune" else "vit"
    encoder = make_encoder(run.model, operand_dtype(run.precision), kind=kind)

    def describe(variables: dict, batch: PatchBatch) -> tuple[jax.Array, jax.Array]:
        x = encoder.apply(variables, batch.images, method="features")
        return x, jnp.ones((x.shape[0], 1), x.dtype)

    def sums(variables: dict, batch: PatchBatch, segments: jax.Array) -> jax.Array:
        x, _ = describe(variables, batch)
        return jnp.matmul(segments, l2_normalize(x), precision="highest")

    alone = {name: tree["encoder"] for name, tree in variables.items()}
    width = run.model.width if kind == "vit" else encoder.width
    origin = np.zeros((1, width), np.float32)
    return PatchDescriber(name, "cls", source, alone, describe, sums, origin, False)


def netrvlad_describer(name: str, run: ConfigDict, variables: dict, source: str) -> PatchDescriber:
    """L2-normalised NetRVLAD vectors of a finetuned model; arguments as for `cls_describer`."""
    module = make_writer_model(run)
    normalized = run.netrvlad.normalized

    def describe(variables: dict, batch: PatchBatch) -> tuple[jax.Array, jax.Array]:
        return module.apply(variables, batch.images, binary=batch.binary)

    def sums(variables: dict, batch: PatchBatch, segments: jax.Array) -> jax.Array:
        x, assignment = describe(variables, batch)
        centroids = variables["params"]["netrvlad"]["centroids"]
        pages = page_sum(assignment, x, centroids, segments, normalized)
        return pages.reshape(pages.shape[0], -1)

    centroids = np.asarray(variables["params"]["netrvlad"]["centroids"])
    return PatchDescriber(
        name, "netrvlad", source, variables, describe, sums, centroids, normalized
    )


def sift_describer(kind: str, words: np.ndarray) -> PatchDescriber:
    """Unit residuals of SIFT to the nearest visual word [v, 128]; `kind` is one of `sift.KINDS`."""

    def describe(variables: dict, batch: PatchBatch) -> tuple[jax.Array, jax.Array]:
        x = sift.describe(kind, batch.binary, batch.descriptors)
        return x, sift.nearest_word(x, variables["words"])

    def sums(variables: dict, batch: PatchBatch, segments: jax.Array) -> jax.Array:
        x, assignment = describe(variables, batch)
        pages = page_sum(assignment, x, variables["words"], segments)
        return pages.reshape(pages.shape[0], -1)

    variables = {"words": jnp.asarray(words)}
    name = sift.descriptor_name(kind)
    return PatchDescriber(name, name, "binary", variables, describe, sums, words, False)


class Checkpoint:
    """The model of a run folder, and what else describes patches beside it.

    Args:
      folder: run folder of pretrain, finetune or convert.
      which: its checkpoint, `last` or `best`.

    Raises:
      UserError: there is no such run or checkpoint.
    """

    def __init__(self, folder: Path, which: str = "last") -> None:
        self.folder, self.which = folder, which
        self._variables, meta = load_variables(folder, KINDS, which)
        self._run = read_config(folder)
        self._finetuned = meta["kind"] == "writer"

    def recipe(self) -> PageRecipe:
        """The recipe of the run folder, else the default for its kind of model."""
        known = read_recipe(self.folder)
        if known is not None:
            return known
        if self._finetuned:
            return default_recipe("netrvlad", self._run.input)
        return default_recipe("cls", "page")

    @property
    def trained_scale(self) -> float | None:
        """The factor by which the training pages were resized; None where the run does not tell."""
        store = self._run.get("store")
        return None if store is None else store.scale

    def learned(self, source: str, precision: str) -> PatchDescriber:
        """The model of the checkpoint; arguments as in `PageRecipe`, the precision resolved."""
        run = _with_precision(self._run, precision)
        if self._finetuned:
            return netrvlad_describer("finetuned", run, self._variables, source)
        return cls_describer("pretrained", run, self._variables, source)

    def sift(self, kind: str) -> PatchDescriber:
        """SIFT of one of `sift.KINDS`, with the visual words of the run folder."""
        return sift_describer(kind, sift.load_words(self.folder, kind))

    def part(self, descriptor: str, recipe: PageRecipe) -> PatchDescriber:
        """What describes patches for one part of a recipe.

        Raises:
          UserError: the checkpoint is of another kind, or the run folder has no visual words.
        """
        for kind in sift.KINDS:
            if descriptor == sift.descriptor_name(kind):
                return self.sift(kind)
        describer = self.learned(recipe.input, recipe.precision)
        if describer.descriptor != descriptor:
            raise UserError(
                f"{self.folder} gives descriptors {describer.descriptor!r}, not {descriptor!r}"
            )
        return describer

    def compared(self, name: str, recipe: PageRecipe) -> PatchDescriber | None:
        """One of `COMPARE`; None for `pretrained` where the model started from random weights.

        Only here is the run read from which a finetuning started. None, with a note, where that
        run is not found: a run folder that was copied alone describes pages without it.

        Raises:
          UserError: the visual words do not exist.
        """
        for kind in sift.KINDS:
            if name == sift.descriptor_name(kind):
                return self.sift(kind)
        first = self._first_run() if self._finetuned and self._run.checkpoint else None
        if first is None and self._finetuned and self._run.checkpoint:
            if distributed.is_main():
                logger.warning(
                    f"note: no row {name!r} to compare with: {self._run.checkpoint}, the run that "
                    f"{self.folder} started from, is not here"
                )
            return None
        run = _with_precision(read_config(first) if first else self._run, recipe.precision)
        if name == "random":
            return cls_describer("random", run, _untrained(run), recipe.input)
        if not first:
            return None
        variables, _ = load_variables(first, KINDS, self._run.which)
        return cls_describer("pretrained", run, variables, recipe.input)

    def _first_run(self) -> Path | None:
        """The run that the finetuning started from; None where it is not found.

        A relative path is read from each folder above the run folder, the nearest first, since the
        training was started in one of them, then from the working directory. A run of another
        model is not the right one.
        """
        folders = [above / self._run.checkpoint for above in self.folder.resolve().parents]
        for folder in (*folders, Path(self._run.checkpoint)):
            if not (folder / "config.json").is_file():
                continue
            if read_config(folder).model == self._run.model:
                return folder
        return None


def describers_of(checkpoint: Checkpoint, recipe: PageRecipe) -> list[PatchDescriber]:
    """What describes the patches for each part of a recipe, in its order."""
    return [checkpoint.part(part.descriptor, recipe) for part in recipe.parts]


def compared_describers(
    checkpoint: Checkpoint, recipe: PageRecipe, names: Sequence[str], known: set[str]
) -> list[PatchDescriber]:
    """The describers of `names` that are not `known` already, in the order of `COMPARE`.

    Raises:
      UserError: an unknown name.
    """
    for name in names:
        check_choice("config.compare", name, COMPARE)
    order = [name for name in ("pretrained", "random", *COMPARE[2:]) if name in names]
    describers = [checkpoint.compared(name, recipe) for name in order if name not in known]
    return [describer for describer in describers if describer is not None]


def _with_precision(run: ConfigDict, precision: str) -> ConfigDict:
    """The config of a run with the precision that embeds."""
    run = run.copy_and_resolve_references()
    run.precision = precision
    return run


def _untrained(run: ConfigDict) -> dict:
    """The model before the first update of a run that started from scratch."""
    init = init_variables if run.stage == "pretrain" else init_writer_variables
    return jax.jit(lambda: init(run, jax.random.key(run.seed)))()
