"""Worker processes that cut pages: light, single-threaded, and gone when their parent is."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from threadpoolctl import threadpool_limits


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_worker() -> None:
    """Keeps a worker to one thread, and ends it when its parent is gone."""
    # Ctrl-C reaches the whole process group; the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threadpool_limits(1)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps OpenCV and numeric libraries to one thread meanwhile."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(threads)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Hides the main program from the processes started meanwhile.

    A spawned process runs the main program's module again, which would load jax in every worker
    and start an unguarded script a second time; the workers need nothing of it.
    """
    main = vars(sys.modules["__main__"])
    spec, file = main["__spec__"], main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main["__spec__"] = spec
        if file is not None:
            main["__file__"] = file
