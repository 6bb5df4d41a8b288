"""Writing a file so that a reader sees the old one or the whole new one, never a half."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO]:
    """A file open for writing (`w`, UTF-8, or `wb`) that takes its name when it is closed whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    with temporary.open(mode, **text) as file:
        yield file
    temporary.replace(path)
