"""The device mesh, and which axis of each array lies across it."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.errors import UserError

AXES = ("data", "fsdp")


def make_mesh(sizes: ConfigDict) -> Mesh:
    """A mesh of all devices with axes `data` and `fsdp`; at most one size is -1, the rest.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    devices = jax.device_count()
    shape = [sizes[axis] for axis in AXES]
    given = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and given > 0 and devices % given == 0:
        shape = [devices // given if size == -1 else size for size in shape]
    if math.prod(shape) != devices or min(shape) < 1:
        raise UserError(
            f"config.mesh asks for {dict(sizes)} but there are {devices} devices; "
            "the sizes must multiply to that number, one of them may be -1"
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch lie across all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: object, mesh: Mesh) -> object:
    """A sharding a leaf of an abstract state: the largest axis that `fsdp` divides lies across it.

    A function of shape alone, so that a parameter and its optimiser moments lie alike. Vectors and
    what does not divide are replicated.
    """
    ways = mesh.shape["fsdp"]

    def of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [a for a in range(leaf.ndim) if leaf.shape[a] % ways == 0]
        if ways == 1 or leaf.ndim < 2 or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda a: leaf.shape[a])
        spec = [None] * leaf.ndim
        spec[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of, state)


def local_batch_size(global_batch_size: int) -> int:
    """Rows of a global batch that this process loads.

    Raises:
      UserError: a batch that the devices do not divide.
    """
    if global_batch_size % jax.device_count():
        raise UserError(
            f"config.global_batch_size={global_batch_size} is not divisible by "
            f"{jax.device_count()} devices"
        )
    return global_batch_size // jax.process_count()


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process has loaded."""
    rows = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
