"""The updates of a run, with logging, validation and checkpoints between them."""

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed, sharding
from saghog_jax.input_pipeline.errors import RunError, StoppedError
from saghog_jax.runs import report
from saghog_jax.runs.checkpoint import Checkpoints, Progress, newest_step
from saghog_jax.runs.metrics_log import MetricsLog, duration
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.profiler import Profiler
from saghog_jax.runs.trackers import open_sinks
from saghog_jax.runs.train_state import TrainState
from saghog_jax.training.optim import learning_rate
from saghog_jax.training.signals import StopRequest
from saghog_jax.training.validation import Evaluator

logger = logging.getLogger(__name__)

# Updates that may run on the device while the host prepares the next one.
_AHEAD = 2


class UpdateLoop:
    """Runs the updates of a run one after the other.

    The host waits for the device before a checkpoint, before an evaluation, and if more than
    `_AHEAD` updates are unfinished.

    Args:
      config: resolved.
      folder: the run folder.
      start_step: finished updates at the start.
      progress: best evaluation so far; updated in place.
      mesh: devices of the batches.
      checkpoints: of the run folder.
      evaluator: None without validation.
      request: tells which stop signal has come.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: Path,
        start_step: int,
        progress: Progress,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        evaluator: Evaluator | None,
        request: StopRequest,
    ) -> None:
        self._config, self._folder = config, folder
        self._start, self._progress = start_step, progress
        self._mesh, self._checkpoints, self._evaluator = mesh, checkpoints, evaluator
        self._request = request
        self._log = MetricsLog(
            folder,
            start_step,
            config.total_steps,
            config.global_batch_size,
            open_sinks(config, folder, start_step) if distributed.is_main() else (),
        )
        self._profiler = Profiler(config.profile, folder)
        # Steps and metrics of the updates that may be unfinished, oldest first.
        self._unfinished: deque[tuple[int, dict[str, jax.Array]]] = deque()
        # Number of the stop signal that all processes know of, 0 for none.
        self._stop = 0
        self._saved = start_step

    def close(self) -> None:
        """Ends an open trace and closes the sinks of metrics."""
        self._profiler.close()
        self._log.close()

    def run(
        self, update: Callable, state: TrainState, batches: Iterator[dict[str, np.ndarray]]
    ) -> TrainState:
        """Runs all remaining steps and returns the last state.

        Raises:
          StoppedError: a signal stopped the run; the state is saved.
          RunError: the loss or the gradient norm is not finite.
        """
        config = self._config
        start_time = time.monotonic()
        for step in range(self._start + 1, config.total_steps + 1):
            fetch_time = time.monotonic()
            batch = sharding.to_device(next(batches), self._mesh)
            self._log.waited_for_data(time.monotonic() - fetch_time)
            self._profiler.before(step)
            state, metrics = update(state, batch, self._stop_flags())
            self._profiler.after(step, metrics)
            if step == self._start + 1:
                self._log.restart_clock(self._start)
            self._unfinished.append((step, metrics))
            self._finish_updates(_AHEAD)
            self._evaluate_and_save(step, state)
            if self._stop and step < config.total_steps:
                self._stop_run(step, state)
            if self._progress.finished:
                distributed.log_once(
                    logger,
                    f"no better {config.validation.monitor} in {config.validation.patience} "
                    f"evaluations: stopped early, best was step {self._progress.best_step}",
                )
                break
        spent = duration(time.monotonic() - start_time)
        distributed.log_once(
            logger, f"{step - self._start} steps in {spent}; run folder {self._folder}"
        )
        return state

    def _stop_flags(self) -> jax.Array:
        flags = np.full(jax.local_device_count(), self._request.signal, np.int32)
        return sharding.to_device({"stop": flags}, self._mesh)["stop"]

    def _finish_updates(self, ahead: int) -> None:
        """Waits for all but the newest `ahead` updates; checks and logs their metrics."""
        config = self._config
        while len(self._unfinished) > ahead:
            step, metrics = self._unfinished.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            stop = int(values.pop("stop"))
            self._stop = self._stop or stop
            values = {"loss": values.pop("loss"), **values}
            for name in ("loss", "grad_norm"):
                if not np.isfinite(values[name]):
                    self._raise_not_finite(step, name, values[name])
            if step % config.log_every == 0 or step == config.total_steps:
                rate = learning_rate(step - 1, config.optim, config.total_steps, np)
                self._log.write(step, {**values, "learning_rate": float(rate)})
                self._checkpoints.check()

    def _raise_not_finite(self, step: int, name: str, value: float) -> NoReturn:
        # Completes the checkpoint that is being written, so that the message can name it.
        self._checkpoints.close()
        metric = {"loss": "the loss", "grad_norm": "the gradient norm"}[name]
        raise RunError(
            f"{metric} of step {step} is {value}; the last checkpoint is "
            f"{newest_step(self._folder)} in {self._folder}"
        )

    def _stop_run(self, step: int, state: TrainState) -> NoReturn:
        self._save(step, state)
        self._checkpoints.close()
        name = signal.Signals(self._stop).name
        raise StoppedError(
            f"stopped by {name} after step {step} of {self._config.total_steps}; repeat the "
            f"command to continue in {self._folder}",
            self._stop,
        )

    def _evaluate_and_save(self, step: int, state: TrainState) -> None:
        """Validates and saves the state where the config asks for it."""
        config = self._config
        last = step == config.total_steps
        evaluated = self._evaluator and (last or step % config.validation.every == 0)
        if evaluated:
            self._evaluate(step, state)
        best = evaluated and self._progress.best_step == step
        if last or best or self._progress.finished or step % config.checkpoint_every == 0:
            self._save(step, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        self._finish_updates(0)
        start_time = time.monotonic()
        figures = self._evaluator(state.variables)
        value = figures[f"validation_{self._config.validation.monitor}"]
        progress, patience = self._progress, self._config.validation.patience
        sign = 1 if self._config.validation.monitor == "map" else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_step, progress.waited = value, step, 0
        else:
            progress.waited += 1
        progress.finished = bool(patience) and progress.waited >= patience
        self._log.write_evaluation(step, {**figures, "best_step": progress.best_step})
        self._log.leave_out(time.monotonic() - start_time)

    def _save(self, step: int, state: TrainState) -> None:
        """Saves a checkpoint once all updates are finished; does nothing if it exists already."""
        if self._saved == step:
            return
        self._finish_updates(0)
        start_time = time.monotonic()
        self._checkpoints.save(step, state, self._progress)
        if distributed.is_main():
            # The report shows the progress of a run before it ends.
            write_report(self._folder, note=report.NO_PICTURES)
        self._log.leave_out(time.monotonic() - start_time)
        self._saved = step


def write_report(folder: Path, pictures: Sequence[Picture] = (), note: str = "") -> None:
    """Writes the report of a run; a failure is logged and does not stop the run."""
    try:
        report.write(folder, pictures, note)
    except OSError as error:
        message = f"{folder / report.REPORT} could not be written: {error.strerror}"
        distributed.log_once(logger, message)
