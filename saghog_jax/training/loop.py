"""Training in a run folder, shared by both training stages.

`state.step` counts finished updates. Checkpoint N holds the state of step N and the data position
N. The batch and the random key of an update depend on its step only: a run that was interrupted
anywhere and continued ends in the same parameters.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from saghog_jax.devices import distributed, sharding
from saghog_jax.input_pipeline.errors import RunError
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
from saghog_jax.runs.train_state import TrainState
from saghog_jax.training import signals
from saghog_jax.training.gradients import check_accumulation
from saghog_jax.training.task import Task, init_state, make_step
from saghog_jax.training.updates import UpdateLoop, write_report
from saghog_jax.training.validation import Evaluator

logger = logging.getLogger(__name__)


class Run:
    """A run folder, new or to be continued.

    Raises:
      UserError: the folder belongs to another config; the message shows the difference.
    """

    def __init__(self, config: ConfigDict, folder: Path, kind: str) -> None:
        self.config, self.folder = config, folder
        check_config(config, folder)
        self._kind = kind
        # `fit` reports and moves damaged checkpoints.
        self._find_start(repair=False)

    def _find_start(self, repair: bool) -> None:
        self.start_step = newest_undamaged(self.folder, say=repair, move_away=repair) or 0
        self.progress = Progress()
        if self.start_step:
            self.progress = Progress(**read_meta(self.folder, self.start_step)["progress"])

    @property
    def finished(self) -> bool:
        """Whether all steps are done or the run has stopped early."""
        return self.progress.finished or self.start_step >= self.config.total_steps

    def fit(self, task: Task) -> None:
        """Trains to `config.total_steps`, from the newest checkpoint if there is one.

        Raises:
          StoppedError: a signal stopped the run; the state is saved.
          RunError: the loss is not finite, or a checkpoint cannot be written.
          UserError: another run is active in the folder.
        """
        config = self.config
        with contextlib.ExitStack() as stack:
            if distributed.is_main():
                stack.enter_context(locked(self.folder))
                write_config(config, self.folder)
            distributed.barrier("locked")
            # Another run may have ended in this folder since the constructor read it.
            self._find_start(repair=True)
            if self.finished:
                return
            request = stack.enter_context(signals.stop_requests())
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
        config = self.config
        mesh = sharding.make_mesh(config.mesh)
        check_accumulation(config, mesh.size)
        abstract = jax.eval_shape(lambda: init_state(task, config.seed))
        shardings = sharding.state_shardings(abstract, mesh)
        state = self._initial_state(task, checkpoints, abstract, shardings)
        update = _compiled_update(task, config, mesh, shardings)
        _describe(config, state, mesh, sharding.fallbacks(abstract.params, mesh))
        evaluator = None
        if task.held_out is not None:
            evaluator = Evaluator(task.held_out, task.validate, mesh, config.seed)
        batches = task.batches(self.start_step)
        try:
            loop = UpdateLoop(
                config,
                self.folder,
                self.start_step,
                self.progress,
                mesh,
                checkpoints,
                evaluator,
                request,
            )
            with contextlib.closing(loop):
                state = loop.run(update, state, batches)
        finally:
            batches.close()
        self._write_report(task, state)

    def _initial_state(
        self, task: Task, checkpoints: Checkpoints, abstract: TrainState, shardings: TrainState
    ) -> TrainState:
        seed = self.config.seed
        if not self.start_step:
            # Initialised with its shardings: no device ever holds a whole sharded parameter.
            state = jax.jit(lambda: init_state(task, seed), out_shardings=shardings)()
            return state.with_variables(task.warm_start(state.variables))
        message = f"continuing from step {self.start_step} in {self.folder}"
        distributed.log_once(logger, message)
        like = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        )
        return checkpoints.restore(self.start_step, like)

    def _write_report(self, task: Task, state: TrainState) -> None:
        if distributed.active():
            # No host holds the whole of a state that is sharded over several hosts.
            if distributed.is_main():
                write_report(self.folder, note=report.NO_PICTURES)
            return
        write_report(self.folder, task.pictures(jax.device_get(state.variables)))


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
      open_task: makes the task from the config and the run folder.

    Returns:
      (page_id, reason) of the pages that could not be used.

    Raises:
      UserError, RunError, StoppedError: see `Run`.
    """
    run = Run(config, workdir, kind)
    if run.finished:
        distributed.log_once(logger, f"{workdir} has all its {run.start_step} steps already")
        return ()
    task = open_task(config, workdir)
    run.fit(task)
    return task.skipped


def _compiled_update(
    task: Task, config: ConfigDict, mesh: jax.sharding.Mesh, shardings: TrainState
) -> Callable:
    """The jitted update: state, batch and stop flags -> state and metrics."""
    step = make_step(task, config.seed, config.accumulate)

    def update(
        state: TrainState, batch: dict, stop: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = step(state, batch)
        # All processes learn of the stop request of one process at the same step.
        return state, {**metrics, "stop": jnp.max(stop)}

    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return jax.jit(
        update,
        in_shardings=(shardings, rows, rows),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )


def _describe(
    config: ConfigDict, state: TrainState, mesh: jax.sharding.Mesh, replicated: list[str]
) -> None:
    """Logs the sizes of the run; `replicated` names parameters that could not be split."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    if replicated:
        distributed.log_once(
            logger,
            f"replicated, because {mesh.shape['fsdp']} divides none of their axes: "
            f"{len(replicated)} parameters, {', '.join(replicated)}",
        )
    kind = "a processor" if device.platform == "cpu" else device.device_kind
    distributed.log_once(
        logger,
        f"training: {config.total_steps:,} steps of {config.global_batch_size:,} patches, on "
        f"{kind if mesh.size == 1 else f'{mesh.size} devices ({device.device_kind})'}",
    )
    if distributed.is_main():
        logger.debug(
            f"{count:,} parameters, mesh {dict(mesh.shape)} of {device.device_kind} "
            f"({device.platform})"
        )
