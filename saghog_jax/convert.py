"""Stage convert: published PyTorch weights to a run folder, and a run folder to such weights.

This module reads and writes the files and folders. `weights.torch_names` maps the names and layouts
of the arrays.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from saghog_jax.devices import precision
from saghog_jax.embedding.pack import pack
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.models.build import make_mae, make_writer_model
from saghog_jax.runs.checkpoint import (
    KINDS,
    Checkpoints,
    Progress,
    load_variables,
    params_digest,
    read_config,
)
from saghog_jax.runs.stage_result import NextStage, StageResult
from saghog_jax.runs.train_state import TrainState
from saghog_jax.weights import torch_names
from saghog_jax.weights.files import read_weights
from saghog_jax.weights.torch_names import Report

logger = logging.getLogger(__name__)

FORMS = ("published", "packed")
# Kind of the checkpoint -> stage that usually reads it next.
NEXT = {"encoder": "finetune", "mae": "finetune", "writer": "embed"}
# Target -> channels of the images whose HOG is predicted; 0: no HOG.
_TARGET_CHANNELS = {"hog_binary": 1, "hog_gray": 1, "hog_rgb": 3, "pixel": 0}


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Converts a run folder to weights, or weights to a run folder, into `workdir`.

    Raises:
      UserError: the checkpoint is missing, damaged or of another model, or `workdir` holds another
        run.
    """
    source = Path(config.checkpoint)
    if not config.checkpoint:
        raise UserError(
            "config.checkpoint is empty: give a file of weights (.pt, .safetensors, .npz) to "
            "import, or a run folder to export, --config.checkpoint=PATH"
        )
    if not source.exists():
        raise UserError(f"config.checkpoint: there is no {source}")
    check_choice("config.form", config.form, FORMS)
    if config.form == "packed":
        return _pack(source, config.which, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        return StageResult(workdir, paths={"weights": _export(source, workdir)})
    kind = _import(config, source, workdir)
    following = NextStage(NEXT[kind], fields={"checkpoint": workdir})
    return StageResult(workdir, paths={"run": workdir}, following=(following,))


def _pack(source: Path, which: str, workdir: Path) -> StageResult:
    pack(source, which, workdir)
    size = sum(path.stat().st_size for path in workdir.iterdir())
    logger.info(f"packed {source} into {workdir}, {size / 1e6:.1f} MB")
    following = NextStage("embed", fields={"checkpoint": workdir}, variant="plain")
    return StageResult(workdir, paths={"model": workdir}, following=(following,))


def _import(config: ConfigDict, source: Path, workdir: Path) -> str:
    weights = read_weights(source)
    try:
        params, report, run_config, kind = from_published(weights, config)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    _write_report(workdir, report)
    if report.missing:
        raise UserError(
            f"{source} lacks {len(report.missing)} parameters of a model of kind {kind!r}, the "
            f"first is {report.missing[0]}; all are in {workdir / 'report.txt'}"
        )
    written = _save_run(workdir, run_config, params, kind)
    word = "imported" if written else "imported before:"
    logger.info(f"{word} {source} as {kind!r} into {workdir}")
    return kind


def from_published(
    weights: Mapping[str, np.ndarray], config: ConfigDict
) -> tuple[dict, Report, ConfigDict, str]:
    """Converts weights with the published names.

    Args:
      weights: published name -> array.
      config: of configs/convert.py.

    Returns:
      the parameters; the report on every name; the config of the run folder; the kind of the
      checkpoint.

    Raises:
      ValueError: the weights are of another architecture, or do not fit each other.
    """
    sizes = torch_names.architecture(weights)
    decoder = "decoder_depth" in sizes and sizes["decoder_depth"] > 0
    kind = "writer" if "num_clusters" in sizes else "mae" if decoder else "encoder"
    run_config = config.run_config("finetune" if kind == "writer" else "pretrain")
    model = run_config.model
    for field in ("patch_size", "token_size", "width", "depth", "mlp_ratio"):
        model[field] = sizes.get(field, model[field])
    model.heads = config.heads
    if decoder:
        model.decoder_width, model.decoder_depth = sizes["decoder_width"], sizes["decoder_depth"]
        model.decoder_heads = config.decoder_heads
    images = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    if kind == "writer":
        run_config.embed_dim = sizes.get("embed_dim", 0)
        run_config.netrvlad.num_clusters = sizes["num_clusters"]
        run_config.netrvlad.init = "random"
        run_config.checkpoint = ""
        run_config.input = config.input
        module = make_writer_model(precision.resolve(run_config))
        arguments = (images,)
    else:
        if decoder:
            _set_target(run_config, weights, sizes["target_dim"])
        module = make_mae(model, sizes.get("target_dim", 1), jnp.float32)
        arguments = (images, jnp.zeros((1, (model.patch_size // model.token_size) ** 2)), 0.5)
    template = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))["params"]
    if kind == "encoder":
        template = {"encoder": template["encoder"]}
    params, report = torch_names.from_torch_names(weights, template)
    return params, report, run_config, kind


def _set_target(run_config: ConfigDict, weights: Mapping[str, np.ndarray], channels: int) -> None:
    """Sets the target of the decoder, read from its output width and the stored gradient kernel."""
    token_size, bins = run_config.model.token_size, run_config.hog.num_bins
    kernels = [w for name, w in weights.items() if name.endswith("target_generator.weight_x")]
    cells = math.isqrt(channels // bins)
    if kernels and bins * cells**2 == channels and cells and token_size % cells == 0:
        run_config.target = "hog_rgb" if kernels[0].shape[1] == 3 else "hog_binary"
        run_config.hog.cell_size = token_size // cells
    elif channels == 3 * token_size**2:
        run_config.target = "pixel"
    else:
        raise ValueError(
            f"the decoder predicts {channels} channels a token of {token_size} pixels, which is "
            f"neither a HOG of {bins} bins nor RGB pixels"
        )


def _save_run(workdir: Path, run_config: ConfigDict, params: dict, kind: str) -> bool:
    """Writes a run folder; returns False if the folder holds these weights already."""
    if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
        variables, meta = load_variables(workdir, KINDS)
        if meta["kind"] == kind and params_digest(variables["params"]) == params_digest(params):
            return False
        raise UserError(f"{workdir} holds another run; give another --workdir")
    with atomic_write(workdir / "config.json", "w") as file:
        file.write(run_config.to_json(indent=2, sort_keys=True) + "\n")
    checkpoints = Checkpoints(workdir, keep=1, kind=kind)
    state = TrainState(step=jnp.int32(0), params=params, model_state={}, opt_state=())
    checkpoints.save(0, state, Progress())
    checkpoints.close()
    return True


def _export(source: Path, workdir: Path) -> Path:
    run_config = read_config(source)
    variables, meta = load_variables(source, KINDS)
    if meta["kind"] == "writer" and run_config.encoder != "vit":
        raise UserError(f"{source} has the encoder {run_config.encoder!r}: no published names")
    channels = _TARGET_CHANNELS[run_config.target] if meta["kind"] == "mae" else 0
    weights, report = torch_names.to_torch_names(
        variables["params"], run_config.model.patch_size, channels
    )
    _write_report(workdir, report)
    path = workdir / "weights.safetensors"
    with atomic_write(path, "wb") as file:
        file.write(save(weights, metadata={"format": "pt", "kind": meta["kind"]}))
    logger.info(f"exported {source} of kind {meta['kind']!r}, {len(weights)} arrays, to {path}")
    return path


def _write_report(workdir: Path, report: Report) -> None:
    path = workdir / "report.txt"
    with atomic_write(path, "w") as file:
        file.write("\n".join(report.lines()) + "\n")
    counts = {name: len(getattr(report, name)) for name in ("used", "missing", "unused")}
    logger.info(", ".join(f"{n} {name}" for name, n in counts.items()) + f"; every key in {path}")
    for line in report.lines()[counts["used"] :]:
        logger.info("  " + line)
