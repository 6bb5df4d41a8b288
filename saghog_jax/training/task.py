"""The interface of a training stage to the loop: its task, initial state and update."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saghog_jax.runs.pictures import Picture
from saghog_jax.runs.train_state import TrainState, split_params
from saghog_jax.training.gradients import Objective, loss_and_gradients
from saghog_jax.training.validation import HeldOut


class Task(Objective, Protocol):
    """What a training stage adds to the loop.

    Attributes:
      kind: of the checkpoints, one of `checkpoint.KINDS`.
      tx: the optimiser.
      skipped: (page_id, reason) of the pages that could not be used so far.
      held_out: pages for validation; None without validation.
    """

    kind: str
    tx: optax.GradientTransformation
    skipped: Sequence[tuple[str, str]]
    held_out: HeldOut | None

    def init(self, rng: jax.Array) -> dict:
        """New variables (`params` and other collections); called inside jit."""

    def warm_start(self, variables: dict) -> dict:
        """The variables of the first update, with the shardings of `variables`; called once."""

    def validate(
        self, variables: dict, batch: dict, segments: jax.Array, rng: jax.Array
    ) -> dict[str, jax.Array]:
        """See `validation.Validate`; needed if pages are held out."""

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The local rows of the global batches `start_step`, `start_step + 1`, ..."""

    def pictures(self, variables: dict) -> list[Picture]:
        """Pictures of the model's inputs and results; the variables are whole host arrays."""


def make_step(
    task: Task, seed: int, micro_batches: int = 1
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The update: a pure function of state and batch, to be compiled by the caller."""

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, model_state, grads = loss_and_gradients(
            task, state.variables, batch, rng, micro_batches
        )
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
