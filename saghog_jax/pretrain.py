"""Stage 1, pretraining: a masked autoencoder learns handwriting (paper, section 3)."""

from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.devices import cores, precision
from saghog_jax.runs.stage_result import NextStage, StageResult
from saghog_jax.training.loop import run_training
from saghog_jax.training.pretraining import Pretraining, open_task


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Pretrains in the run folder `workdir`.

    Raises:
      UserError, RunError, StoppedError: see `training.loop.Run`.
    """
    skipped = run_training(resolve(config), workdir, Pretraining.kind, open_task)
    following = NextStage(
        "finetune",
        sections={"data": config.data, "regions": config.regions},
        fields={"store.scale": config.store.scale, "checkpoint": workdir},
    )
    return StageResult(
        workdir=workdir,
        paths={"run": workdir},
        counts={"steps": config.total_steps},
        skipped=tuple(skipped),
        following=(following,),
    )


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with the precision and the number of CPU devices of this process.

    Raises:
      UserError: the precision is unknown.
    """
    return cores.resolve(precision.resolve(config))
