"""The cores of a CPU as devices of the mesh.

The update of a small model is hundreds of small operations. On one device each of them is divided
among the cores, and each waits for the slowest core. With one device a core, each core computes its
part of the batch, and the cores wait for each other only where they exchange numbers: for the
metric loss and for the sum of the gradients.

jax reads the number of devices when it first looks for devices, once in a process. The command line
sets it; in Python it is that of the caller's process.
"""

import json
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.workers import usable_cores

# Widest model of a new run that gets one device a core, and fewest patches of a device in an
# update. Measured: 1.2 to 1.4 times the rate on two cores (docs/speed.md).
_WIDTH = 128
_PATCHES = 32


def divide(config: ConfigDict, folder: Path) -> None:
    """Sets the number of CPU devices of this process; call it before jax looks for devices.

    Does nothing if the config has no field `cpu_devices`, if several processes work together, or if
    `XLA_FLAGS` has a number of devices.

    Args:
      config: of the command line, not resolved.
      folder: the run folder.

    Raises:
      UserError: the field is negative.
    """
    if "cpu_devices" not in config or config.distributed.mode != "off":
        return
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    jax.config.update("jax_num_cpu_devices", number(config, folder))


def number(config: ConfigDict, folder: Path) -> int:
    """The number of CPU devices of a run.

    It is `config.cpu_devices`; for 0 the number that the run in `folder` was begun with, so that
    the run continues to the bit. A new run of a small model on the default mesh gets one a core, as
    far as the batch can be divided; any other gets 1.

    Raises:
      UserError: the field is negative.
    """
    if config.cpu_devices < 0:
        raise UserError(f"config.cpu_devices={config.cpu_devices} must be 0 or a number of devices")
    if config.cpu_devices:
        return config.cpu_devices
    stored = _stored(folder)
    if stored:
        # Runs of older versions, and those on accelerators, have no number.
        return stored.get("cpu_devices") or 1
    return _of_a_new_run(config)


def _of_a_new_run(config: ConfigDict) -> int:
    # A finetuning has the model of the run it starts from.
    first = _stored(Path(config.checkpoint)) if config.checkpoint else {}
    width = first.get("model", {}).get("width", config.model.width)
    small = width <= _WIDTH and config.get("encoder", "vit") == "vit"
    if not small or config.mesh.to_dict() != {"data": -1, "fsdp": 1}:
        return 1
    part = config.global_batch_size // config.accumulate
    numbers = range(1, usable_cores() + 1)
    return max((n for n in numbers if part % (n * _PATCHES) == 0), default=1)


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with the number of CPU devices of this process in `cpu_devices`."""
    if jax.default_backend() != "cpu" or config.cpu_devices == jax.local_device_count():
        return config
    config = config.copy_and_resolve_references()
    config.cpu_devices = jax.local_device_count()
    return config


def _stored(folder: Path) -> dict:
    """The config of a run folder; empty where there is none, or none that can be read."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
