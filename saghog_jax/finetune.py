"""Stage 2, finetuning: NetRVLAD and a metric loss on the pretrained encoder (paper, section 3)."""

from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.devices import cores, distributed, precision
from saghog_jax.embedding import fit_compact, sift
from saghog_jax.embedding.run_recipe import finetuned_recipe, write_recipe
from saghog_jax.input_pipeline.errors import UserError, check_choice
from saghog_jax.models import inputs
from saghog_jax.models.build import ENCODERS
from saghog_jax.models.writer_model import DESCRIPTORS
from saghog_jax.runs.checkpoint import read_config
from saghog_jax.runs.stage_result import NextStage, StageResult
from saghog_jax.training import finetuning
from saghog_jax.training.finetuning import HEAD_INITS, LOSSES, RATES, Finetuning
from saghog_jax.training.labels import LABELS
from saghog_jax.training.loop import run_training
from saghog_jax.weights.packed import model_folder


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Finetunes in the run folder `workdir`, which also gets the recipe of page descriptors.

    Raises:
      UserError, RunError, StoppedError: see `training.loop.Run`.
    """
    config = resolve(config)
    skipped = run_training(config, workdir, Finetuning.kind, open_task)
    if distributed.is_main():
        # Again: the section `page` of a finished run may change.
        write_recipe(finetuned_recipe(config), workdir)
        fit_compact.ensure(config, workdir)
    distributed.barrier("fitted")
    # Ready-cut patches are no pages, which embed needs.
    sections = {} if config.data.cluster_regex else {"data": config.data}
    return StageResult(
        workdir=workdir,
        paths={"run": workdir},
        counts={"steps": config.total_steps},
        skipped=tuple(skipped),
        following=(NextStage("embed", sections=sections, fields={"checkpoint": workdir}),),
    )


def open_task(config: ConfigDict, folder: Path) -> Finetuning:
    """The task of a resolved config; visual words of SIFT and the recipe go to the run folder."""
    task = finetuning.open_task(config, folder)
    if config.sift_words:
        distributed.main_first(
            lambda: sift.ensure_words(folder, task.store, task.shown, config.sift_words)
        )
    if distributed.is_main():
        write_recipe(finetuned_recipe(config), folder)
    return task


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with the model of the run `checkpoint`, precision and CPU devices resolved.

    Raises:
      UserError: the run does not exist, a choice is unknown, or choices exclude each other.
    """
    for field, value, known in (
        ("labels", config.labels, LABELS),
        ("input", config.input, inputs.INPUTS),
        ("encoder", config.encoder, ENCODERS),
        ("descriptor", config.descriptor, DESCRIPTORS),
        ("netrvlad.init", config.netrvlad.init, HEAD_INITS),
        ("loss.kind", config.loss.kind, LOSSES),
        ("optim.rates", config.optim.rates, RATES),
    ):
        check_choice(f"config.{field}", value, known)
    if config.checkpoint and config.encoder != "vit":
        raise UserError(
            f"config.encoder={config.encoder!r} starts from scratch, but config.checkpoint names "
            f"{config.checkpoint!r}; set --config.checkpoint= (nothing)"
        )
    if config.netrvlad.init == "checkpoint" and not config.checkpoint:
        raise UserError("config.netrvlad.init=checkpoint needs config.checkpoint")
    if config.accumulate > 1 and config.encoder != "vit":
        raise UserError(
            f"config.accumulate={config.accumulate} would change the batch statistics of "
            f"config.encoder={config.encoder!r}; set it to 1"
        )
    if config.freeze_encoder and not config.checkpoint:
        raise UserError("config.freeze_encoder needs config.checkpoint: nothing else was learned")
    if config.patches_per_bag < 1 or config.patches_per_class % config.patches_per_bag:
        raise UserError(
            f"config.patches_per_class={config.patches_per_class} is not a whole number of bags of "
            f"config.patches_per_bag={config.patches_per_bag} patches"
        )
    if sum(config.page.sift.values()) and not config.sift_words:
        raise UserError(
            f"config.page.sift gives SIFT a weight, but config.sift_words={config.sift_words}: "
            "its visual words are needed"
        )
    # Choices of the recipe that are not possible are found before hours of training.
    finetuned_recipe(config)
    config = cores.resolve(precision.resolve(config))
    if config.checkpoint:
        run = read_config(model_folder(config.checkpoint))
        if run.stage == "finetune" and run.encoder != "vit":
            raise UserError(
                f"config.checkpoint: {config.checkpoint} has the encoder {run.encoder!r}, only the "
                "vit of pretrain, convert or finetune can be started from"
            )
        config = config.copy_and_resolve_references()
        config.model = run.model
    return config
