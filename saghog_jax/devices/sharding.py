"""The device mesh, and the sharding of arrays on it."""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError

AXES = ("data", "fsdp")
# Whether an array is split across the axis `fsdp` or replicated, by its name. Vectors are small and
# needed whole at every use: they are always replicated.
RULES = ((r"(cls|mask)_token$", "replicate"), (r"", "split"))


def make_mesh(sizes: ConfigDict, among: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices with the axes `data` and `fsdp`.

    Args:
      sizes: number of devices along each axis; one of them may be -1, which takes the rest.
      among: devices of the mesh; by default the devices of all processes.

    Raises:
      UserError: the product of the sizes is not the number of devices.
    """
    devices = jax.device_count() if among is None else len(among)
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and devices % fixed == 0:
        shape = [devices // fixed if size == -1 else size for size in shape]
    if math.prod(shape) != devices or min(shape) < 1:
        raise UserError(
            f"config.mesh is {dict(sizes)} but there are {devices} devices; "
            "the product of the sizes must be that number, one of them may be -1"
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=among)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The rows of a batch are split across all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: object, mesh: Mesh, rules: Sequence[tuple[str, str]] = RULES) -> object:
    """The shardings of an abstract state, by the first rule that matches the name of each leaf.

    `split` splits the largest axis that the size of `fsdp` divides; an array without such an axis,
    and every vector, is replicated. The sharding depends on name and shape only: a parameter and
    its optimiser moments, whose names end alike, have the same sharding.

    Args:
      state: tree of arrays or ShapeDtypeStructs.
      rules: (regular expression, `split` or `replicate`).

    Raises:
      ValueError: no rule matches an array.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(_name(path), leaf, mesh, rules)), state
    )


def fallbacks(state: object, mesh: Mesh, rules: Sequence[tuple[str, str]] = RULES) -> list[str]:
    """Names and shapes of the arrays that are replicated although their rule is `split`."""
    if mesh.shape["fsdp"] == 1:
        return []
    return [
        f"{_name(path)} {tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim > 1
        and _action(_name(path), rules) == "split"
        and _spec(_name(path), leaf, mesh, rules) == PartitionSpec()
    ]


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _action(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, action in rules:
        if re.search(pattern, name):
            return action
    raise ValueError(f"no rule matches {name!r}; rules: {[p for p, _ in rules]}")


def _spec(
    name: str, leaf: jax.ShapeDtypeStruct, mesh: Mesh, rules: Sequence[tuple[str, str]]
) -> PartitionSpec:
    ways = mesh.shape["fsdp"]
    axes = [a for a in range(leaf.ndim) if leaf.shape[a] % ways == 0]
    if _action(name, rules) == "replicate" or ways == 1 or leaf.ndim < 2 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda a: leaf.shape[a])
    spec: list[str | None] = [None] * leaf.ndim
    spec[largest] = "fsdp"
    return PartitionSpec(*spec)


def shard_like(new: object, old: object) -> object:
    """Copies host arrays to devices with the shardings and types of `old`.

    No device receives more than its part.

    Args:
      new: tree of numpy arrays.
      old: tree of jax arrays of the same shapes.
    """

    def place(new: np.ndarray, old: jax.Array) -> jax.Array:
        host = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: host[index])

    return jax.tree.map(place, new, old)


def check_divisible(field: str, size: int, devices: int) -> None:
    """Checks that all devices get equal parts of a batch.

    Raises:
      UserError: `size` is not divisible by `devices`.
    """
    if size % devices:
        raise UserError(f"config.{field}={size} is not divisible by {devices} devices")


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the local rows of each process."""
    rows = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
