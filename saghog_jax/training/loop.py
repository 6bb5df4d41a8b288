"""The one loop both training stages share.

`state.step` counts finished updates; checkpoint N holds the state of step N and the data position
N. The batch and the random key of an update are functions of its step alone, so a run that was
stopped anywhere and started again ends in the same parameters.
"""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.devices import distributed, sharding
from saghog_jax.input_pipeline.errors import RunError, StoppedError
from saghog_jax.input_pipeline.progress import duration
from saghog_jax.runs import report
from saghog_jax.runs.checkpoint import (
    DISK_ERRORS,
    Checkpoints,
    Progress,
    newest_step,
    newest_undamaged,
    read_meta,
)
from saghog_jax.runs.folder import check_config, locked, write_config
from saghog_jax.runs.metrics_log import MetricsLog
from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.profiler import Profiler
from saghog_jax.runs.trackers import open_sinks
from saghog_jax.runs.train_state import TrainState
from saghog_jax.training import signals
from saghog_jax.training.gradients import check_accumulation
from saghog_jax.training.optim import learning_rate
from saghog_jax.training.task import Task, init_state, make_step
from saghog_jax.training.validation import Evaluator

# Updates that may be under way while the host prepares the next one.
_AHEAD = 2


class Run:
    """A run folder: new, or one to go on in.

    Raises:
      UserError: the folder was made with another config; the message shows the difference.
    """

    def __init__(self, config: ConfigDict, folder: Path, kind: str) -> None:
        self.config, self.folder = config, folder
        check_config(config, folder)
        self._kind = kind
        # Whoever goes on to `fit` hears of damage there, once.
        self._find_start(repair=False)

    def _find_start(self, repair: bool) -> None:
        self.start_step = newest_undamaged(self.folder, say=repair, move_away=repair) or 0
        self.progress = Progress()
        if self.start_step:
            self.progress = Progress(**read_meta(self.folder, self.start_step)["progress"])

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train: all steps are done, or it has stopped early."""
        return self.progress.finished or self.start_step >= self.config.total_steps

    def fit(self, task: Task) -> None:
        """Trains to `config.total_steps`, from the newest checkpoint if there is one.

        Raises:
          StoppedError: a signal asked for it; the state is saved.
          RunError: the loss is no number, or a checkpoint cannot be written.
          UserError: another run is under way in the folder.
        """
        config = self.config
        with contextlib.ExitStack() as stack:
            if distributed.is_main():
                stack.enter_context(locked(self.folder))
                write_config(config, self.folder)
            distributed.barrier("locked")
            # Another run may have ended here since this one looked.
            self._find_start(repair=True)
            if self.finished:
                return
            request = stack.enter_context(signals.listening())
            checkpoints = stack.enter_context(
                Checkpoints(self.folder, config.keep_checkpoints, self._kind, config.keep_every)
            )
            try:
                self._fit(task, checkpoints, request)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                raise RunError(
                    f"{self.folder} could not be written to: {error.strerror}; the last whole "
                    f"checkpoint is {newest_step(self.folder)}"
                ) from error

    def _fit(self, task: Task, checkpoints: Checkpoints, request: signals.StopRequest) -> None:
        config, start = self.config, self.start_step
        mesh = sharding.make_mesh(config.mesh)
        check_accumulation(config, mesh.size)
        abstract = jax.eval_shape(lambda: init_state(task, config.seed))
        shardings = sharding.state_shardings(abstract, mesh)
        if start:
            distributed.say(f"going on from step {start} in {self.folder}")
            like = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                abstract,
                shardings,
            )
            state = checkpoints.restore(start, like)
        else:
            # Made where it will live: no device ever holds parameters that are sharded whole.
            state = jax.jit(lambda: init_state(task, config.seed), out_shardings=shardings)()
            state = state.with_variables(task.warm_start(state.variables))
        step = make_step(task, config.seed, config.accumulate)

        def update(
            state: TrainState, batch: dict, stop: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = step(state, batch)
            # What one process is asked for all learn at the same step.
            return state, {**metrics, "stop": jnp.max(stop)}

        rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        update = jax.jit(
            update,
            in_shardings=(shardings, rows, rows),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        )
        _describe(config, state, mesh, sharding.fallbacks(abstract.params, mesh))
        evaluator = None
        if task.held_out is not None:
            evaluator = Evaluator(task.held_out, task.validate, mesh, config.seed)
        batches = task.batches(start)
        try:
            loop = _Loop(self, mesh, checkpoints, evaluator, request)
            with contextlib.closing(loop):
                state = loop.run(update, state, batches)
        finally:
            batches.close()
        self._write_report(task, state)

    def _write_report(self, task: Task, state: TrainState) -> None:
        if distributed.active():
            # Of a state that lies on several hosts none has the whole.
            if distributed.is_main():
                _write_report(self.folder, note=report.NO_PICTURES)
            return
        _write_report(self.folder, task.pictures(jax.device_get(state.variables)))


def run_training(
    config: ConfigDict,
    workdir: Path,
    kind: str,
    open_task: Callable[[ConfigDict, Path], Task],
) -> Sequence[tuple[str, str]]:
    """Trains in the run folder `workdir`, unless the run is finished.

    Args:
      config: resolved.
      kind: of the checkpoints, one of `checkpoint.KINDS`.
      open_task: makes the task of a config and a run folder.

    Returns:
      (page_id, reason) of the pages that could not be used.

    Raises:
      UserError, RunError, StoppedError: see `Run`.
    """
    run = Run(config, workdir, kind)
    if run.finished:
        distributed.say(f"{workdir} has all its {run.start_step} steps already")
        return ()
    task = open_task(config, workdir)
    run.fit(task)
    return task.skipped


class _Loop:
    """Updates one after the other, and what is to be done between two of them.

    The host waits for the device only where it must: before a checkpoint, an evaluation, and where
    it would be more than `_AHEAD` updates in advance.
    """

    def __init__(
        self,
        run: Run,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        evaluator: Evaluator | None,
        request: signals.StopRequest,
    ) -> None:
        self._config, self._folder = run.config, run.folder
        self._start, self._progress = run.start_step, run.progress
        self._mesh, self._checkpoints, self._evaluator = mesh, checkpoints, evaluator
        self._request = request
        self._log = MetricsLog(
            run.folder,
            run.start_step,
            run.config.total_steps,
            run.config.global_batch_size,
            open_sinks(run.config, run.folder, run.start_step) if distributed.is_main() else (),
        )
        self._profiler = Profiler(run.config.profile, run.folder)
        # Updates whose metrics have not been looked at, oldest first.
        self._running: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._stop = 0
        self._saved = run.start_step

    def close(self) -> None:
        """Ends a trace that is under way, and the sinks of metrics."""
        self._profiler.close()
        self._log.close()

    def run(
        self, update: Callable, state: TrainState, batches: Iterator[dict[str, np.ndarray]]
    ) -> TrainState:
        """From the first step that is missing to the last; returns the state after it."""
        config = self._config
        began = time.monotonic()
        for done in range(self._start + 1, config.total_steps + 1):
            waiting = time.monotonic()
            batch = sharding.to_device(next(batches), self._mesh)
            self._log.waited_for_data(time.monotonic() - waiting)
            self._profiler.before(done)
            state, metrics = update(state, batch, self._stop_flags())
            self._profiler.after(done, metrics)
            if done == self._start + 1:
                self._log.restart_clock(self._start)
            self._running.append((done, metrics))
            self._look(_AHEAD)
            last = done == config.total_steps
            evaluated = self._evaluator and (last or done % config.validation.every == 0)
            if evaluated:
                self._evaluate(done, state)
            best = evaluated and self._progress.best_step == done
            if last or best or self._progress.finished or done % config.checkpoint_every == 0:
                self._save(done, state)
            if self._stop and not last:
                self._save(done, state)
                self._checkpoints.close()
                name = signal.Signals(self._stop).name
                raise StoppedError(
                    f"stopped by {name} after step {done} of {config.total_steps}; the same "
                    f"command goes on in {self._folder}",
                    self._stop,
                )
            if self._progress.finished:
                distributed.say(
                    f"no better {config.validation.monitor} in {config.validation.patience} "
                    f"evaluations: stopped early, best was step {self._progress.best_step}"
                )
                break
        took = duration(time.monotonic() - began)
        distributed.say(f"{done - self._start} steps in {took}; run folder {self._folder}")
        return state

    def _stop_flags(self) -> jax.Array:
        flags = np.full(jax.local_device_count(), self._request.signal, np.int32)
        return sharding.to_device({"stop": flags}, self._mesh)["stop"]

    def _look(self, ahead: int) -> None:
        """Checks and logs the metrics of all but the newest `ahead` updates."""
        while len(self._running) > ahead:
            step, metrics = self._running.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            stop = int(values.pop("stop"))
            self._stop = self._stop or stop
            values = {"loss": values.pop("loss"), **values}
            for name in ("loss", "grad_norm"):
                if not np.isfinite(values[name]):
                    self._not_finite(step, name, values[name])
            config = self._config
            if step % config.log_every == 0 or step == config.total_steps:
                rate = learning_rate(step - 1, config.optim, config.total_steps, np)
                self._log.write(step, {**values, "learning_rate": float(rate)})
                self._checkpoints.check()

    def _not_finite(self, step: int, name: str, value: float) -> NoReturn:
        # Said only when the checkpoint that was being written is whole.
        self._checkpoints.close()
        what = {"loss": "the loss", "grad_norm": "the gradient norm"}[name]
        raise RunError(
            f"{what} of step {step} is {value}; the last checkpoint is "
            f"{newest_step(self._folder)} in {self._folder}"
        )

    def _evaluate(self, done: int, state: TrainState) -> None:
        self._look(0)
        began = time.monotonic()
        figures = self._evaluator(state.variables)
        value = figures[f"validation_{self._config.validation.monitor}"]
        progress, patience = self._progress, self._config.validation.patience
        sign = 1 if self._config.validation.monitor == "map" else -1
        if progress.best is None or sign * value > sign * progress.best:
            progress.best, progress.best_step, progress.waited = value, done, 0
        else:
            progress.waited += 1
        progress.finished = bool(patience) and progress.waited >= patience
        self._log.write_evaluation(done, {**figures, "best_step": progress.best_step})
        self._log.leave_out(time.monotonic() - began)

    def _save(self, done: int, state: TrainState) -> None:
        """A checkpoint of a state that is known to be good; nothing where there is one already."""
        if self._saved == done:
            return
        self._look(0)
        began = time.monotonic()
        self._checkpoints.save(done, state, self._progress)
        if distributed.is_main():
            # For who looks at a run that is under way.
            _write_report(self._folder, note=report.NO_PICTURES)
        self._log.leave_out(time.monotonic() - began)
        self._saved = done


def _write_report(folder: Path, pictures: Sequence[Picture] = (), note: str = "") -> None:
    try:
        report.write(folder, pictures, note)
    except OSError as error:
        # A run is worth more than its report.
        distributed.say(f"{folder / report.REPORT} could not be written: {error.strerror}")


def _describe(
    config: ConfigDict, state: TrainState, mesh: jax.sharding.Mesh, unsplit: list[str]
) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    if unsplit:
        distributed.say(
            f"replicated, because {mesh.shape['fsdp']} does not divide an axis of theirs: "
            f"{len(unsplit)} parameters, {', '.join(unsplit)}"
        )
    distributed.say(
        f"{count:,} parameters, {config.total_steps} steps of {config.global_batch_size} patches, "
        f"mesh {dict(mesh.shape)} of {device.device_kind} ({device.platform})"
    )
