"""The temporary folder in which a builder of a store writes shards before they get their names."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saghog_jax.input_pipeline.errors import UserError


@contextmanager
def open_workspace(folder: Path) -> Iterator[Path]:
    """A new folder of this builder beside the shards; first removes the folders of dead builders.

    A builder holds a lock on its workspace while its process lives, so a builder without a lock is
    dead. The workspace is removed at the end.

    Args:
      folder: of the store; created with its subfolder `shards`.

    Raises:
      UserError: the folder cannot be written.
    """
    for other in folder.glob("building-*"):
        with _locked(other / "lock") as dead:
            if dead:
                shutil.rmtree(other, ignore_errors=True)
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    except OSError as error:
        raise UserError(f"cannot write in the folder {folder}: {error.strerror}") from None
    try:
        with _locked(workspace / "lock"):
            yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Locks a file. Yields whether that succeeded: False also where files cannot be locked."""
    try:
        file = path.open("a")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
