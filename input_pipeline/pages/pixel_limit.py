"""Lifts Pillow's own limit of pixels for one thread, where `data.max_pixels` is checked instead."""

import contextlib
import threading
from collections.abc import Iterator

from PIL import Image

_thread = threading.local()


@contextlib.contextmanager
def pillow_limit_lifted() -> Iterator[None]:
    """Inside the context, Pillow opens images of any size in this thread.

    Scanners exceed Pillow's limit. `Image.MAX_IMAGE_PIXELS` belongs to the whole process and stays
    as it is, so that the limit holds for other threads and for the program that uses this library.
    """
    _install()
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1


def _install() -> None:
    """Makes Pillow's check look at this thread first; repeated calls change nothing."""
    check = Image._decompression_bomb_check
    if getattr(check, "by_thread", False):
        return

    def by_thread(*args: object, **options: object) -> None:
        if not getattr(_thread, "depth", 0):
            check(*args, **options)

    by_thread.by_thread = True
    Image._decompression_bomb_check = by_thread
