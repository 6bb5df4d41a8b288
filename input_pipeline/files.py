"""Suffixes of image files, paths with `~`, and atomic writing of a file."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from saghog_jax.input_pipeline.errors import UserError

# Suffixes of image files; other files in a folder of pages are left out and listed.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".j2k", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    *(".jfi", ".jfif", ".jif", ".j2c", ".jpc", ".jpf", ".jpx", ".heic", ".heif", ".hif"),
)
PDF_SUFFIX = ".pdf"


def user_path(text: str | os.PathLike) -> Path:
    """A path in which `~` or `~NAME` at the start stands for a home folder.

    Raises:
      UserError: there is no such home folder, and no file or folder of that name.
    """
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        if path.exists():
            return path
        raise UserError(
            f"{str(path)!r}: the home folder of {path.parts[0]!r} is not known; give the path in "
            "full"
        ) from None


@contextlib.contextmanager
def atomic_write(path: Path, mode: str) -> Iterator[IO]:
    """Opens a temporary file, which is renamed to `path` when the block ends without an error.

    Readers of `path` see the old content or the whole new content. Several processes may write the
    same path: the last one to finish wins. If the block fails, the temporary file is removed and an
    old file stays as it was.

    Args:
      path: folders above it are created.
      mode: `w` for text in UTF-8, with line breaks as written, or `wb`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    try:
        with temporary.open(mode, **text) as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
