"""The models that `embed` runs: of a checkpoint, and of what it started from.

Axis letters: b patches of a batch, s pages of a batch, v clusters, d width of a feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from saghog_jax import patch_sift, precision, pretrain
from saghog_jax.checkpoint import KINDS, load_variables, read_config
from saghog_jax.models.make import make_encoder, make_writer_model
from saghog_jax.models.netrvlad import page_sum
from saghog_jax.precision import operand_dtype
from saghog_jax.retrieval.aggregate import l2_normalize

COMPARE = ("random", "pretrained", "sift")
INPUTS = ("auto", "page", "binary")


@dataclass(frozen=True)
class Model:
    """What turns the patches of a batch into sums of descriptors by page.

    `describe(variables, images, binary)` takes normalised images [b, h, w, c] and their binary
    [b, h, w, 1], and returns features and assignment as `netrvlad.vlad` reads them with
    `centroids` [v, d]. `sums(variables, images, binary, segments)` takes weights [s, b] too, and
    returns [s, v * d]. CLS features are VLAD of one cluster at zero.
    """

    name: str
    kind: str
    input: str
    variables: dict
    describe: Callable[[dict, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    sums: Callable[[dict, jax.Array, jax.Array, jax.Array], jax.Array]
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

    def describe(
        variables: dict, images: jax.Array, binary: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del binary
        x = encoder.apply(variables, images, method="features")
        return x, jnp.ones((x.shape[0], 1), x.dtype)

    def sums(
        variables: dict, images: jax.Array, binary: jax.Array, segments: jax.Array
    ) -> jax.Array:
        x, _ = describe(variables, images, binary)
        return segments @ l2_normalize(x)

    alone = {name: tree["encoder"] for name, tree in variables.items()}
    width = config.model.width if kind == "vit" else encoder.width
    origin = np.zeros((1, width), np.float32)
    return Model(name, "cls", source, alone, describe, sums, origin, False)


def netrvlad_model(name: str, config: ConfigDict, variables: dict, source: str) -> Model:
    """Sums of L2-normalised NetRVLAD vectors; `config` is that of the finetuning."""
    module = make_writer_model(config)
    normalized = config.netrvlad.normalized

    def describe(
        variables: dict, images: jax.Array, binary: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return module.apply(variables, images, binary=binary)

    def sums(
        variables: dict, images: jax.Array, binary: jax.Array, segments: jax.Array
    ) -> jax.Array:
        x, assignment = describe(variables, images, binary)
        centroids = variables["params"]["netrvlad"]["centroids"]
        pages = page_sum(assignment, x, centroids, segments, normalized)
        return pages.reshape(pages.shape[0], -1)

    centroids = np.asarray(variables["params"]["netrvlad"]["centroids"])
    return Model(name, "netrvlad", source, variables, describe, sums, centroids, normalized)


def sift_model(words: np.ndarray) -> Model:
    """Sums of the unit residuals of upright RootSIFT to its nearest word [v, 128]."""

    def describe(
        variables: dict, images: jax.Array, binary: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del images
        x = patch_sift.root_sift(binary)
        return x, patch_sift.nearest_word(x, variables["words"])

    def sums(
        variables: dict, images: jax.Array, binary: jax.Array, segments: jax.Array
    ) -> jax.Array:
        x, assignment = describe(variables, images, binary)
        pages = page_sum(assignment, x, variables["words"], segments)
        return pages.reshape(pages.shape[0], -1)

    variables = {"words": jnp.asarray(words)}
    return Model("sift", "sift", "binary", variables, describe, sums, words, False)


def load_models(config: ConfigDict) -> list[Model]:
    """The model of `config.checkpoint`, then those of `config.compare`, last that of SIFT.

    The last is there too where `config.sift_share` wants it beside the first.

    Raises:
      UserError: a checkpoint that is not there; unknown names in `input` or `compare`; a share that
        is none; words of SIFT that are not there.
    """
    if not 0 <= config.sift_share < 1:
        raise UserError(f"config.sift_share={config.sift_share} must lie in [0, 1)")
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
        begun_from = Path(run.init_from) if run.init_from else None
    else:
        source = "page" if config.input == "auto" else config.input
        models = [cls_model("pretrained", run, variables, source)]
        begun_from = folder
    begun = _run_config(begun_from, config) if begun_from else run
    if "pretrained" in config.compare and begun_from and models[0].name != "pretrained":
        given, _ = load_variables(begun_from, KINDS, run.init_checkpoint)
        models.append(cls_model("pretrained", begun, given, source))
    if "random" in config.compare:
        models.append(cls_model("random", begun, _untrained(begun), source))
    if "sift" in config.compare or config.sift_share:
        models.append(sift_model(patch_sift.load_words(folder)))
    return models


def _run_config(folder: Path, config: ConfigDict) -> ConfigDict:
    """The config of a run, with the precision that embeds."""
    run = read_config(folder)
    run.precision = precision.resolve(config).precision
    return run


def _untrained(run: ConfigDict) -> dict:
    """The model as it was before the first update of a run that started from scratch."""
    if run.stage == "pretrain":
        return jax.jit(lambda: pretrain.init_variables(run, jax.random.key(run.seed)))()
    size = run.model.patch_size
    images, binary = jnp.zeros((1, size, size, 3)), jnp.zeros((1, size, size, 1))
    model = make_writer_model(run)
    return jax.jit(lambda: model.init(jax.random.key(run.seed), images, binary=binary))()
