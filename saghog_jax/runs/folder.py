"""A run folder: it has one config, and one run at a time trains in it.

FOLDER/
  config.json       the resolved config
  lock              held while a run trains; names the process
  recipe.json       of finetuning: the recipe of page descriptors, see embedding/recipe.py
  validation.json   held-out writers and pages, with `validation.share`
  metrics.jsonl     one line for each logged step and each validation
  checkpoints/N/    the state after N updates; checksums/N.json has the SHA-256 of its files
  damaged/          damaged checkpoints
  tensorboard/      the metrics as TensorBoard events
  report.html       curves, config and pictures, see report.py
  profile/          a trace of some steps, with `profile`
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.nested import flat
from saghog_jax.runs.older_configs import read_config_json, upgrade_config

logger = logging.getLogger(__name__)

# Fields that may change when a run continues: they change neither the data nor, except for
# rounding, the mathematics.
_FREE_FIELDS = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "loader"),
    *("mesh", "cpu_devices", "distributed", "accumulate", "remat"),
    *("tensorboard", "wandb", "profile", "page"),
)
_FREE_SUBFIELDS = {
    "store": ("root", "workers"),
    "regions": ("root", "workers"),
    "data": ("cache",),
}


def check_config(config: ConfigDict, folder: Path) -> None:
    """Checks that a run folder is new, or has the same config.

    Raises:
      UserError: the folder has another config; the message shows the differences.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    ours = _flat(upgrade_config(json.loads(config.to_json())))
    theirs = _flat(read_config_json(path))
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


def write_config(config: ConfigDict, folder: Path) -> None:
    """Writes config.json if it does not exist."""
    path = folder / "config.json"
    if not path.exists():
        with atomic_write(path, "w") as file:
            file.write(config.to_json(indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder. The system releases the lock when the process ends.

    Raises:
      UserError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise UserError(
                f"{folder} is in use by another run ({holder}); wait until that run has ended, or "
                "give another --workdir"
            ) from None
        except OSError as error:
            logger.warning(
                f"note: {folder} cannot be locked ({error.strerror}); start only one run in it"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _flat(config: dict) -> dict[str, object]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, without the fields that may change."""
    return {name: value for name, value in flat(config).items() if not _is_free(name.split("."))}


def _is_free(path: list[str]) -> bool:
    if any(name in _FREE_FIELDS for name in path):
        return True
    sections = enumerate(path[:-1], start=1)
    return any(".".join(path[i:]) in _FREE_SUBFIELDS.get(name, ()) for i, name in sections)
