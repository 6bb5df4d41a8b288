"""The loss of a global batch and its gradients, at once or exactly by micro-batches.

A task splits its loss into three parts: `prepare` makes the inputs, without the model and with all
random numbers; `outputs` applies the model to each patch; `loss` is computed from all outputs
together. Only `outputs` runs by micro-batches: the loss and its miner always see the global batch.
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

    Attributes:
      mean_of_rows: the loss is the mean of the losses of single patches, so the gradients of
        micro-batches are averaged. Otherwise each micro-batch is computed twice, the second time
        with the gradient of the loss with respect to its outputs.
    """

    mean_of_rows: bool

    def prepare(self, batch: dict, rng: jax.Array) -> Tree:
        """Rows of inputs from a global batch of the loader: decoded, augmented, keys, noise."""

    def outputs(self, variables: dict, rows: Tree) -> tuple[Tree, dict]:
        """The outputs of the model for each row, and the model's updated other collections."""

    def loss(self, variables: dict, outputs: Tree, rows: Tree) -> jax.Array:
        """The loss of all rows together, a scalar."""


def check_accumulation(config: ConfigDict, devices: int) -> None:
    """Checks that micro-batches divide the batch and devices divide the micro-batches.

    Raises:
      UserError: a division leaves a remainder.
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
    """The loss of a batch of the loader, and the model's updated other collections."""
    rows = task.prepare(batch, rng)
    outputs, collections = task.outputs(variables, rows)
    return task.loss(variables, outputs, rows), collections


def loss_and_gradients(
    task: Objective, variables: dict, batch: dict, rng: jax.Array, micro_batches: int = 1
) -> tuple[jax.Array, dict, dict]:
    """Loss, updated other collections, and gradients with respect to the parameters.

    Args:
      micro_batches: number of parts of the batch that the model processes one after the other. With
        more than one the other collections are not updated.
    """
    params, rest = split_params(variables)

    def whole(params: dict) -> tuple[jax.Array, dict]:
        return batch_loss(task, {**rest, "params": params}, batch, rng)

    if micro_batches == 1:
        (loss, rest), gradients = jax.value_and_grad(whole, has_aux=True)(params)
        return loss, rest, gradients
    rows = task.prepare(batch, rng)
    parts = jax.tree.map(lambda x: _split(x, micro_batches), rows)

    def part_loss(params: dict, part: Tree) -> jax.Array:
        variables = {**rest, "params": params}
        return task.loss(variables, task.outputs(variables, part)[0], part)

    def loss_of_outputs(params: dict) -> jax.Array:
        variables = {**rest, "params": params}

        # Only the outputs of a micro-batch are stored; the backward pass recomputes the rest.
        @jax.checkpoint
        def forward(part: Tree) -> Tree:
            return task.outputs(variables, part)[0]

        outputs = jax.tree.map(_join, jax.lax.map(forward, parts))
        return task.loss(variables, outputs, rows)

    if not task.mean_of_rows:
        loss, gradients = jax.value_and_grad(loss_of_outputs)(params)
        return loss, rest, gradients

    def add(total: tuple[jax.Array, dict], part: Tree) -> tuple[tuple[jax.Array, dict], None]:
        addend = jax.value_and_grad(part_loss)(params, part)
        return jax.tree.map(jnp.add, total, addend), None

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zeros, parts)
    loss, gradients = jax.tree.map(lambda x: x * np.float32(1 / micro_batches), total)
    return loss, rest, gradients


def _split(x: jax.Array, n: int) -> jax.Array:
    """[b, ...] -> [n, b / n, ...]; part i has the rows i, i + n, ...

    Neighbouring rows go to different parts, so that each device already has its rows of every part.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
