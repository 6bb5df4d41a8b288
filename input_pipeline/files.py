"""Names of image files, and writing a file whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Endings of the names of image files; other files in a folder of pages are not read.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".j2k", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


@contextlib.contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO]:
    """A file open for writing (`w`, UTF-8, or `wb`) that takes its name when it is closed whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    with temporary.open(mode, **text) as file:
        yield file
    temporary.replace(path)
