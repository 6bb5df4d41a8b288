"""The stages by name, and `run_stage`, which runs the one that a config names."""

import importlib
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax import sam
from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.runs.stage_result import StageResult

STAGES = (
    *("prepare", "pretrain", "finetune", "embed", "retrieve"),
    *("hands", "regions", "show", "search", "verify", "convert", "scans"),
)


def run_stage(config: ConfigDict, workdir: str | Path) -> StageResult:
    """Runs the stage that `config.stage` names.

    Args:
      config: such as `saghog_jax.configs.embed.get_config()` returns.
      workdir: the folder that the stage writes to.

    Raises:
      UserError: the stage is unknown, or its input is wrong.
      RunError: the stage cannot continue: the disk is full, or the loss is NaN.
      StoppedError: a signal has stopped a training; its state is saved.
    """
    check_choice("stage", config.stage, STAGES)
    sam.register_backend()
    stage = importlib.import_module(f"saghog_jax.{config.stage}")
    return stage.run(config, Path(workdir).resolve())
