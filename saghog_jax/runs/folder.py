"""A run folder: made with one config, and trained in by one run at a time.

FOLDER/
  config.json       the resolved config
  lock              held while a run trains here; says which process
  validation.json   the writers and pages that are held out, where a config asks for it
  metrics.jsonl     a line a logged step, and one an evaluation
  checkpoints/N/    the state after N updates; checksums/N.json are those of its files
  damaged/          checkpoints that were found damaged
  tensorboard/      the same numbers as TensorBoard events
  report.html       curves, config and pictures, see run_report.py
  profile/          a trace of some steps, where a config asks for it
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write

# Fields that change neither data nor, but for rounding, mathematics: a run may go on with others.
_FREE_FIELDS = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "loader"),
    *("mesh", "distributed", "accumulate", "remat"),
    *("tensorboard", "wandb", "profile"),
)
_FREE_SUBFIELDS = {
    "store": ("root", "workers"),
    "regions": ("root", "workers"),
    "data": ("cache",),
}


def check_config(config: ConfigDict, folder: Path) -> None:
    """Whether the folder is new, or was made with the same config.

    Raises:
      UserError: it was made with another one; the message shows the difference.
    """
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


def write_config(config: ConfigDict, folder: Path) -> None:
    """Writes config.json where there is none."""
    path = folder / "config.json"
    if not path.exists():
        with atomic_write(path, "w") as file:
            file.write(config.to_json(indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with this process however it ends.

    Raises:
      UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise UserError(
                f"{folder} is in use by another run ({holder}); wait until it has ended, or give "
                "another --workdir"
            ) from None
        except OSError as error:
            print(f"note: {folder} cannot be locked ({error.strerror}); run only once in it")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _flat(config: dict) -> dict[str, object]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, without the fields that may differ."""
    return {
        ".".join(path): value for path, value in flatten_dict(config).items() if not _is_free(path)
    }


def _is_free(path: tuple[str, ...]) -> bool:
    if any(name in _FREE_FIELDS for name in path):
        return True
    sections = enumerate(path[:-1], start=1)
    return any(".".join(path[i:]) in _FREE_SUBFIELDS.get(name, ()) for i, name in sections)
