"""The stage `show`: a run's report.html with pictures of its newest checkpoint."""

from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax import finetune, pretrain
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.runs import report
from saghog_jax.runs.checkpoint import KINDS, load_variables, read_config
from saghog_jax.runs.pictures import Picture

# Which kinds of checkpoint each choice can be drawn from.
PICTURES = {"auto": KINDS, "reconstruction": ("mae",), "classes": ("writer",), "none": KINDS}

_STAGES = {"mae": pretrain, "writer": finetune}


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes report.html into the run folder that the config names.

    Raises:
      UserError: no such run or checkpoint, one of another kind, an unknown choice.
    """
    del workdir
    if config.pictures not in PICTURES:
        raise UserError(
            f"unknown config.pictures {config.pictures!r}, known: {', '.join(PICTURES)}"
        )
    folder = Path(config.checkpoint)
    made_with = read_config(folder)
    pictures: list[Picture] = []
    if config.pictures != "none":
        variables, meta = load_variables(folder, PICTURES[config.pictures], config.which)
        pictures = _pictures(made_with, folder, variables, meta["kind"], config.rows)
    print(f"report: {report.write(folder, pictures)}")


def _pictures(
    config: ConfigDict, folder: Path, variables: dict, kind: str, rows: int
) -> list[Picture]:
    if kind not in _STAGES:
        return []
    return _STAGES[kind].open_task(config, folder).pictures(variables, rows)
