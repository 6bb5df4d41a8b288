"""The stage `show`: a run's report.html with pictures of its newest checkpoint."""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import check_choice
from saghog_jax.runs import report
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.stage_result import StageResult
from saghog_jax.training import finetuning, pretraining
from saghog_jax.weights.packed import model_folder

logger = logging.getLogger(__name__)

# Which kinds of checkpoint each choice can be drawn from.
PICTURES = {"auto": KINDS, "reconstruction": ("mae",), "classes": ("writer",), "none": KINDS}

# What opens the task of a run, by the kind of its checkpoints.
_TASKS = {"mae": pretraining.open_task, "writer": finetuning.open_task}


def run(config: ConfigDict, workdir: Path) -> StageResult:
    """Writes report.html into the run folder that the config names; `workdir` stays unused.

    Raises:
      UserError: the run or its checkpoint does not exist, the checkpoint is of another kind, or a
        choice is unknown.
    """
    check_choice("config.pictures", config.pictures, PICTURES)
    folder = model_folder(config.checkpoint)
    run_config = read_config(folder)
    pictures: list[Picture] = []
    if config.pictures != "none":
        variables, meta = load_variables(folder, PICTURES[config.pictures], config.which)
        pictures = _pictures(run_config, folder, variables, meta["kind"], config.rows)
    path = report.write(folder, pictures)
    logger.info(f"report: {path}")
    return StageResult(workdir, paths={"report": path})


def _pictures(
    config: ConfigDict, folder: Path, variables: dict, kind: str, rows: int
) -> list[Picture]:
    if kind not in _TASKS:
        return []
    return _TASKS[kind](config, folder).pictures(variables, rows)
