"""The device mesh, and which axis of each array lies across it."""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError

AXES = ("data", "fsdp")
# Which arrays lie across the axis `fsdp`, by name: `split` or `replicate`. Vectors are small and
# wanted whole at every use: they are replicated always.
RULES = ((r"(cls|mask)_token$", "replicate"), (r"", "split"))


def make_mesh(sizes: ConfigDict, among: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices with axes `data` and `fsdp`; at most one size is -1, the rest.

    Args:
      among: the devices, by default those of all processes.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    devices = jax.device_count() if among is None else len(among)
    shape = [sizes[axis] for axis in AXES]
    given = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and given > 0 and devices % given == 0:
        shape = [devices // given if size == -1 else size for size in shape]
    if math.prod(shape) != devices or min(shape) < 1:
        raise UserError(
            f"config.mesh asks for {dict(sizes)} but there are {devices} devices; "
            "the sizes must multiply to that number, one of them may be -1"
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=among)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch lie across all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: object, mesh: Mesh, rules: Sequence[tuple[str, str]] = RULES) -> object:
    """A sharding a leaf of an abstract state, as the first rule says whose expression is found.

    `split`: the largest axis that `fsdp` divides lies across it; where there is none, and for
    vectors, the array is replicated. A function of name and shape alone, so that a parameter and
    its optimiser moments, whose names end alike, lie alike.

    Raises:
      ValueError: an array that no rule covers.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(_name(path), leaf, mesh, rules)), state
    )


def fallbacks(state: object, mesh: Mesh, rules: Sequence[tuple[str, str]] = RULES) -> list[str]:
    """Names and shapes of the arrays that a rule wants split and that no axis allows to be."""
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
    raise ValueError(f"no rule covers {name!r}; rules: {[p for p, _ in rules]}")


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


def laid_like(new: object, old: object) -> object:
    """Arrays of the host laid out as placed arrays of the same shapes, without whole copies."""

    def place(new: np.ndarray, old: jax.Array) -> jax.Array:
        host = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: host[index])

    return jax.tree.map(place, new, old)


def check_divisible(field: str, size: int, devices: int) -> None:
    """Sees that devices get equal parts of a batch.

    Raises:
      UserError: they do not.
    """
    if size % devices:
        raise UserError(f"config.{field}={size} is not divisible by {devices} devices")


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process has loaded."""
    rows = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
