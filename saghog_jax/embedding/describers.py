"""The models that `embed` runs: of a checkpoint, and of what it started from.

Axis letters: b patches of a batch, s pages of a batch, v clusters, d width of a feature.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import precision
from saghog_jax.devices.precision import operand_dtype
from saghog_jax.embedding import sift
from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.models.build import init_variables, make_encoder, make_writer_model
from saghog_jax.models.netrvlad import page_sum
from saghog_jax.retrieval.aggregate import l2_normalize
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config

COMPARE = ("random", "pretrained", *(sift.name(kind) for kind in sift.KINDS))
INPUTS = ("auto", "page", "binary")


class Seen(NamedTuple):
    """What a model sees of a batch.

    images: float32 [b, h, w, c], normalised.
    binary: float32 [b, h, w, 1], 1 on paper and 0 on ink.
    descriptors: uint8 [b, 128], raw SIFT of the page at the keypoints; None where no model asks.
    """

    images: jax.Array
    binary: jax.Array
    descriptors: jax.Array | None = None


@dataclass(frozen=True)
class Model:
    """What turns the patches of a batch into sums of descriptors by page.

    `describe(variables, seen)` returns features and assignment as `netrvlad.vlad` reads them with
    `centroids` [v, d]. `sums(variables, seen, segments)` takes weights [s, b] too, and returns
    [s, v * d]. CLS features are VLAD of one cluster at zero.
    """

    name: str
    kind: str
    input: str
    variables: dict
    describe: Callable[[dict, Seen], tuple[jax.Array, jax.Array]]
    sums: Callable[[dict, Seen, jax.Array], jax.Array]
    centroids: np.ndarray
    intra_normalize: bool

    @property
    def dim(self) -> int:
        """Width of a page descriptor."""
        return self.centroids.size


def cls_model(name: str, config: ConfigDict, variables: dict, source: str) -> Model:
    """Sums of L2-normalised CLS features of an encoder; `config` is that of its run."""
    kind = config.encoder if config.stage == "finetune" else "vit"
    encoder = make_encoder(config.model, operand_dtype(config.precision), kind=kind)

    def describe(variables: dict, seen: Seen) -> tuple[jax.Array, jax.Array]:
        x = encoder.apply(variables, seen.images, method="features")
        return x, jnp.ones((x.shape[0], 1), x.dtype)

    def sums(variables: dict, seen: Seen, segments: jax.Array) -> jax.Array:
        x, _ = describe(variables, seen)
        return segments @ l2_normalize(x)

    alone = {name: tree["encoder"] for name, tree in variables.items()}
    width = config.model.width if kind == "vit" else encoder.width
    origin = np.zeros((1, width), np.float32)
    return Model(name, "cls", source, alone, describe, sums, origin, False)


def netrvlad_model(name: str, config: ConfigDict, variables: dict, source: str) -> Model:
    """Sums of L2-normalised NetRVLAD vectors; `config` is that of the finetuning."""
    module = make_writer_model(config)
    normalized = config.netrvlad.normalized

    def describe(variables: dict, seen: Seen) -> tuple[jax.Array, jax.Array]:
        return module.apply(variables, seen.images, binary=seen.binary)

    def sums(variables: dict, seen: Seen, segments: jax.Array) -> jax.Array:
        x, assignment = describe(variables, seen)
        centroids = variables["params"]["netrvlad"]["centroids"]
        pages = page_sum(assignment, x, centroids, segments, normalized)
        return pages.reshape(pages.shape[0], -1)

    centroids = np.asarray(variables["params"]["netrvlad"]["centroids"])
    return Model(name, "netrvlad", source, variables, describe, sums, centroids, normalized)


def sift_model(kind: str, words: np.ndarray) -> Model:
    """Sums of the unit residuals of one of `patch_sift.KINDS` to its nearest word [v, 128]."""

    def describe(variables: dict, seen: Seen) -> tuple[jax.Array, jax.Array]:
        x = sift.describe(kind, seen.binary, seen.descriptors)
        return x, sift.nearest_word(x, variables["words"])

    def sums(variables: dict, seen: Seen, segments: jax.Array) -> jax.Array:
        x, assignment = describe(variables, seen)
        pages = page_sum(assignment, x, variables["words"], segments)
        return pages.reshape(pages.shape[0], -1)

    variables = {"words": jnp.asarray(words)}
    name = sift.name(kind)
    return Model(name, name, "binary", variables, describe, sums, words, False)


def rule_of(store: ConfigDict, models: Sequence[Model]) -> Rule:
    """How pages are cut for some models: by a store section, with SIFT where a model reads it."""
    rule = Rule.from_config(store)
    if any(model.kind == sift.name("keypoint") for model in models):
        rule = dataclasses.replace(rule, descriptors=True)
    return rule


def load_models(config: ConfigDict) -> list[Model]:
    """The model of `config.checkpoint`, then those of `config.compare`, last those of SIFT.

    The last are there too where `config.sift` wants them beside the first.

    Raises:
      UserError: a checkpoint that is not there; unknown names in `input` or `compare`; shares that
        are none; words of SIFT that are not there.
    """
    sift.check_shares(config.sift)
    if config.input not in INPUTS:
        raise UserError(f"unknown config.input {config.input!r}, known: {', '.join(INPUTS)}")
    unknown = sorted(set(config.compare) - set(COMPARE))
    if unknown:
        raise UserError(f"unknown config.compare {unknown[0]!r}, known: {', '.join(COMPARE)}")
    folder = Path(config.checkpoint)
    variables, meta = load_variables(folder, KINDS, config.which)
    run = _run_config(folder, config)
    if meta["kind"] == "writer":
        source = run.input if config.input == "auto" else config.input
        models = [netrvlad_model("finetuned", run, variables, source)]
        begun_from = Path(run.checkpoint) if run.checkpoint else None
    else:
        source = "page" if config.input == "auto" else config.input
        models = [cls_model("pretrained", run, variables, source)]
        begun_from = folder
    begun = _run_config(begun_from, config) if begun_from else run
    if "pretrained" in config.compare and begun_from and models[0].name != "pretrained":
        given, _ = load_variables(begun_from, KINDS, run.which)
        models.append(cls_model("pretrained", begun, given, source))
    if "random" in config.compare:
        models.append(cls_model("random", begun, _untrained(begun), source))
    for kind in sift.KINDS:
        if sift.name(kind) in config.compare or config.sift[kind]:
            models.append(sift_model(kind, sift.load_words(folder, kind)))
    return models


def _run_config(folder: Path, config: ConfigDict) -> ConfigDict:
    """The config of a run, with the precision that embeds."""
    run = read_config(folder)
    run.precision = precision.resolve(config).precision
    return run


def _untrained(run: ConfigDict) -> dict:
    """The model as it was before the first update of a run that started from scratch."""
    if run.stage == "pretrain":
        return jax.jit(lambda: init_variables(run, jax.random.key(run.seed)))()
    size = run.model.patch_size
    images, binary = jnp.zeros((1, size, size, 3)), jnp.zeros((1, size, size, 1))
    model = make_writer_model(run)
    return jax.jit(lambda: model.init(jax.random.key(run.seed), images, binary=binary))()
