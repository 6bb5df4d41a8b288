"""The loss of a global batch and its gradients: all at once, or by micro-batches, exactly.

A task splits its loss in three: what needs no model (`prepare`, with all that is random), what the
model makes of each patch (`outputs`), and the loss of all of these together (`loss`). Only the
second is done by micro-batches, so that the loss and its miner always see the global batch.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.runs.train_state import split_params

Tree = dict | jax.Array | tuple


class Objective(Protocol):
    """The part of a task that is differentiated. Trees of rows have one leading axis, b patches.

    mean_of_rows: the loss is the mean of what single patches give, so that gradients of
      micro-batches may be averaged; else each micro-batch is computed twice, the second time when
      the gradient of the loss with respect to its outputs is known.
    """

    mean_of_rows: bool

    def prepare(self, batch: dict, rng: jax.Array) -> Tree:
        """Rows of inputs from a global batch as loaded: decoded, augmented, with keys and noise."""

    def outputs(self, variables: dict, rows: Tree) -> tuple[Tree, dict]:
        """What the model makes of each row, and the new other collections of the model."""

    def loss(self, variables: dict, outputs: Tree, rows: Tree) -> jax.Array:
        """The loss of all rows together, a scalar."""


def check_accumulation(config: ConfigDict, devices: int) -> None:
    """Whether the batch divides into micro-batches that the devices divide.

    Raises:
      UserError: it does not.
    """
    count, b = config.accumulate, config.global_batch_size
    if count < 1 or b % (count * devices):
        raise UserError(
            f"config.global_batch_size={b} does not divide into config.accumulate={count} "
            f"micro-batches that {devices} devices can share evenly"
        )


def batch_loss(
    task: Objective, variables: dict, batch: dict, rng: jax.Array
) -> tuple[jax.Array, dict]:
    """The loss of a batch as loaded, and the new other collections of the model."""
    rows = task.prepare(batch, rng)
    outputs, collections = task.outputs(variables, rows)
    return task.loss(variables, outputs, rows), collections


def loss_and_gradients(
    task: Objective, variables: dict, batch: dict, rng: jax.Array, micro_batches: int = 1
) -> tuple[jax.Array, dict, dict]:
    """Loss, new other collections, and gradients with respect to the parameters.

    Args:
      micro_batches: the model sees so many parts of the batch one after the other. With more than
        one its other collections stay as they are.
    """
    params, rest = split_params(variables)

    def whole(params: dict) -> tuple[jax.Array, dict]:
        return batch_loss(task, {**rest, "params": params}, batch, rng)

    if micro_batches == 1:
        (loss, rest), gradients = jax.value_and_grad(whole, has_aux=True)(params)
        return loss, rest, gradients
    rows = task.prepare(batch, rng)
    parts = jax.tree.map(lambda x: _split(x, micro_batches), rows)

    def of_part(params: dict, part: Tree) -> jax.Array:
        variables = {**rest, "params": params}
        return task.loss(variables, task.outputs(variables, part)[0], part)

    def recomputed(params: dict) -> jax.Array:
        variables = {**rest, "params": params}

        # Of a micro-batch only the outputs are kept; the backward pass computes it again.
        @jax.checkpoint
        def forward(part: Tree) -> Tree:
            return task.outputs(variables, part)[0]

        outputs = jax.tree.map(_join, jax.lax.map(forward, parts))
        return task.loss(variables, outputs, rows)

    if not task.mean_of_rows:
        loss, gradients = jax.value_and_grad(recomputed)(params)
        return loss, rest, gradients

    def add(total: tuple[jax.Array, dict], part: Tree) -> tuple[tuple[jax.Array, dict], None]:
        found = jax.value_and_grad(of_part)(params, part)
        return jax.tree.map(jnp.add, total, found), None

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zeros, parts)
    loss, gradients = jax.tree.map(lambda x: x * np.float32(1 / micro_batches), total)
    return loss, rest, gradients


def _split(x: jax.Array, n: int) -> jax.Array:
    """[b, ...] -> [n, b / n, ...], part i the rows i, i + n, ...

    Neighbours go to different parts, so that each device has its share of every part already.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
