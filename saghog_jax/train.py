"""The one loop both training stages share.

`state.step` counts finished updates; checkpoint N holds the state of step N and the data position
N. The batch and the random key of an update are functions of its step alone, so a run that was
stopped anywhere and started again ends in the same parameters.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from saghog_jax import distributed, sharding
from saghog_jax.checkpoint import Checkpoints, newest_step
from saghog_jax.files import replacing
from saghog_jax.logging import MetricsLog, duration
from saghog_jax.optim import learning_rate
from saghog_jax.train_state import TrainState, split_params

# Fields that change neither data nor mathematics: a run may go on with other values.
_FREE_FIELDS = (
    "log_every", "checkpoint_every", "keep_checkpoints", "loader", "mesh", "distributed", "dry_run",
)  # fmt: skip
_FREE_SUBFIELDS = {"store": ("root", "workers"), "data": ("cache",)}


class Task(Protocol):
    """What a training stage adds to the loop."""

    kind: str
    tx: optax.GradientTransformation

    def init(self, rng: jax.Array) -> dict:
        """New variables (`params` and other collections); compiled, so made where they live."""

    def warm_start(self, variables: dict) -> dict:
        """Called once, on the host, before the first update: variables to start from instead."""

    def loss(self, variables: dict, batch: dict, rng: jax.Array) -> tuple[jax.Array, dict]:
        """The loss of a global batch as loaded, and the new other collections of the model."""

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The local rows of the global batches `start_step`, `start_step + 1`, ..."""


def make_step(task: Task, seed: int) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The update: a pure function of state and batch, for the caller to compile."""

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params: dict) -> tuple[jax.Array, dict]:
            return task.loss({**state.variables, "params": params}, batch, rng)

        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = task.tx.update(grads, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return new, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return step


def init_state(task: Task, seed: int) -> TrainState:
    """The state before the first update."""
    params, model_state = split_params(task.init(jax.random.key(seed)))
    return TrainState(jnp.int32(0), params, model_state, task.tx.init(params))


class Run:
    """A run folder: new, or one to go on in.

    Raises:
      UserError: the folder was made with another config; the message shows the difference.
    """

    def __init__(self, config: ConfigDict, folder: Path, kind: str) -> None:
        self.config, self.folder = config, folder
        _check_config(config, folder)
        self.start_step = newest_step(folder) or 0
        self._kind = kind

    @property
    def finished(self) -> bool:
        return self.start_step >= self.config.total_steps

    def fit(self, task: Task) -> None:
        """Trains to `config.total_steps`, from the newest checkpoint if there is one."""
        config = self.config
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_config(config, self.folder)
        try:
            with Checkpoints(self.folder, config.keep_checkpoints, self._kind) as checkpoints:
                self._fit(task, checkpoints)
        except FloatingPointError as error:
            # Said only here, when the checkpoint that was being written is whole.
            last = newest_step(self.folder)
            reason = f"{error}; the last checkpoint is {last} in {self.folder}"
            raise FloatingPointError(reason) from None

    def _fit(self, task: Task, checkpoints: Checkpoints) -> None:
        config, start = self.config, self.start_step
        mesh = sharding.make_mesh(config.mesh)
        abstract = jax.eval_shape(lambda: init_state(task, config.seed))
        shardings = sharding.state_shardings(abstract, mesh)
        if start:
            print(f"going on from step {start} in {self.folder}")
            like = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
                abstract,
                shardings,
            )
            state = checkpoints.restore(start, like)
        else:
            # Made where it will live: no device ever holds parameters that are sharded whole.
            state = jax.jit(lambda: init_state(task, config.seed), out_shardings=shardings)()
            started = task.warm_start(state.variables)
            state = state.with_variables(jax.device_put(started, shardings.variables))
        update = jax.jit(
            make_step(task, config.seed),
            in_shardings=(shardings, sharding.batch_sharding(mesh)),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        )
        _describe(config, state, mesh)
        batches = task.batches(start)
        try:
            self._loop(update, state, batches, mesh, checkpoints)
        finally:
            batches.close()

    def _loop(
        self,
        update: Callable,
        state: TrainState,
        batches: Iterator[dict[str, np.ndarray]],
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
    ) -> None:
        config = self.config
        log = MetricsLog(self.folder, self.start_step, config.total_steps, config.global_batch_size)
        began = time.monotonic()
        pending = None
        for step in range(self.start_step, config.total_steps):
            waiting = time.monotonic()
            batch = sharding.to_device(next(batches), mesh)
            log.waited_for_data(time.monotonic() - waiting)
            state, metrics = update(state, batch)
            # The device works on this step while the host looks at the one before.
            if pending is not None:
                self._report(log, step, pending)
            else:
                log.restart_clock(step)
            pending = metrics
            done = step + 1
            if done % config.checkpoint_every == 0 or done == config.total_steps:
                checkpoints.save(done, state)
        self._report(log, config.total_steps, pending)
        steps = config.total_steps - self.start_step
        print(f"{steps} steps in {duration(time.monotonic() - began)}; run folder {self.folder}")

    def _report(self, log: MetricsLog, step: int, metrics: dict[str, jax.Array]) -> None:
        """Checks update `step` (counted from 1) and logs it when it is due."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values = {"loss": values.pop("loss"), **values}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss of step {step} is {values['loss']}")
        if step % self.config.log_every == 0 or step == self.config.total_steps:
            rate = learning_rate(step - 1, self.config.optim, self.config.total_steps, np)
            log.write(step, {**values, "learning_rate": float(rate)})


def _describe(config: ConfigDict, state: TrainState, mesh: jax.sharding.Mesh) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    device = jax.devices()[0]
    print(
        f"{count:,} parameters, {config.total_steps} steps of {config.global_batch_size} patches, "
        f"mesh {dict(mesh.shape)} of {device.device_kind} ({device.platform})",
        flush=True,
    )


def _check_config(config: ConfigDict, folder: Path) -> None:
    """Refuses a run folder that was made with another config."""
    path = folder / "config.json"
    if not path.exists():
        return
    ours, theirs = (_flat(c) for c in (json.loads(config.to_json()), json.loads(path.read_text())))
    keys = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if keys:
        lines = [
            f"  {k}: {theirs.get(k, '(none)')!r} there, {ours.get(k, '(none)')!r} now" for k in keys
        ]
        raise UserError(
            f"{folder} was made with another config:\n"
            + "\n".join(lines)
            + "\ngive another --workdir, or remove that folder"
        )


def _write_config(config: ConfigDict, folder: Path) -> None:
    path = folder / "config.json"
    if not path.exists():
        with replacing(path, "w") as file:
            file.write(config.to_json(indent=2, sort_keys=True) + "\n")


def _flat(config: dict) -> dict[str, object]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, without the fields that may differ."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if key in _FREE_FIELDS:
            continue
        if isinstance(value, dict):
            free = _FREE_SUBFIELDS.get(key, ())
            flat |= {f"{key}.{k}": v for k, v in _flat(value).items() if k not in free}
        else:
            flat[key] = value
    return flat
