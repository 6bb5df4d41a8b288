"""Worker processes that cut pages: small, single-threaded; they end when their parent ends."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2
from threadpoolctl import threadpool_limits

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.quota import cpu_quota

Job = TypeVar("Job")
Result = TypeVar("Result")
# Parameters of mallopt from glibc's malloc.h, and the largest values that they accept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_TRIM, _LARGEST_MMAP = 2**31 - 1, 2**25


def usable_cores() -> int:
    """Number of cores that this process may use: by its affinity and the quota of its container."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def keep_to_one_thread() -> None:
    """Limits OpenCV and numeric libraries to one thread from now on."""
    cv2.setNumThreads(1)
    threadpool_limits(1)


def keep_memory() -> None:
    """Makes this process keep freed memory for its next allocations.

    By default glibc returns large blocks to the system at once and then requests them again, zeroed
    page by page. SIFT allocates dozens of such blocks for each image: without this function,
    cutting a page took 1.2 to 1.7 times as long, a crop of 256 pixels 1.1 to 1.5 times. The peak of
    memory is the same. The function has no effect if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP)


def start_worker() -> None:
    """Limits a worker to one thread, and makes it end when its parent ends."""
    keep_memory()
    # Ctrl-C reaches the whole process group; the parent handles the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_to_one_thread()

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits OpenCV and numeric libraries to one thread inside the context."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(threads)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Hides the main program from processes that are started inside the context.

    A spawned process runs the main program's module again. This would load jax in every worker, and
    start an unguarded script a second time. The workers do not need the main program.
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


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """Runs function(job) for every job and yields the results as they finish, in any order.

    Args:
      function: importable by name.
      workers: number of processes; at most 1 means this process. Each process uses one thread and
        keeps its freed memory.

    Raises:
      UserError: a worker was killed.
      Exception: the first exception of a job; the other jobs are cancelled at once.
    """
    if workers <= 1:
        keep_memory()
        with one_thread():
            yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    try:
        with hidden_main():
            # `submit` starts the processes.
            futures: list[Future[Result]] = [pool.submit(function, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; if so, lower the number of "
            f"workers (now {workers}, --config...workers)"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
