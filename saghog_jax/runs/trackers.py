"""Sinks of metrics besides metrics.jsonl: TensorBoard events, and Weights & Biases.

TensorBoard events are written without TensorFlow. Weights & Biases needs the extra `[wandb]`. It is
off unless the config names a project, and offline by default.
"""

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError, check_choice

WANDB_MODES = ("offline", "online")
TENSORBOARD_FOLDER = "tensorboard"


class Sink(Protocol):
    """Receives the numbers of logged steps."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the numbers of update `step`."""

    def close(self) -> None:
        """Writes the remaining numbers."""


def open_sinks(config: ConfigDict, folder: Path, start_step: int) -> list[Sink]:
    """Opens the sinks of a training config.

    Args:
      config: `tensorboard` and `wandb` of `saghog_jax.configs.training.run_config`.
      folder: the run folder.
      start_step: numbers of later steps are discarded, because these steps are repeated.

    Raises:
      UserError: the mode of Weights & Biases is unknown, or the package is not installed.
    """
    sinks: list[Sink] = []
    # Weights & Biases can fail, so it comes first: then no other sink is open.
    if config.wandb.project:
        sinks.append(_WeightsAndBiases(config, folder))
    if config.tensorboard:
        sinks.append(_TensorBoard(folder / TENSORBOARD_FOLDER, start_step))
    return sinks


class _TensorBoard:
    """Writes events immediately.

    The writer of tensorboardX uses a thread. After a full disk or a jump of the clock that thread
    has ended, and a run would wait for it forever.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{start_step}")
        if start_step:
            # TensorBoard then discards its events of this step and later ones.
            begin = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=start_step + 1, session_log=begin))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            summary = self._scalar(name, value)
            event = self._event(wall_time=time.time(), step=step, summary=summary)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, config: ConfigDict, folder: Path) -> None:
        check_choice("config.wandb.mode", config.wandb.mode, WANDB_MODES)
        try:
            with warnings.catch_warnings():
                # wandb uses deprecated functions of other packages.
                warnings.simplefilter("ignore")
                import wandb
        except ImportError:
            raise UserError(
                f"config.wandb.project={config.wandb.project!r} needs Weights & Biases: "
                "pip install -e '.[wandb]'"
            ) from None
        self._run = wandb.init(
            project=config.wandb.project,
            name=folder.name,
            dir=str(folder),
            mode=config.wandb.mode,
            config=json.loads(config.to_json()),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
