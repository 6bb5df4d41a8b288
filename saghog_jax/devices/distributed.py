"""Several processes that work as one: starting together, helpers, and ending together.

Off unless a config asks for it, and then never quietly alone. A process that dies, or raises, makes
the others stop with a line that says so: each one tells the coordinator that it lives, and a thread
of each watches the others, because a process that waits in a collective for a dead one is not
woken by it.
"""

import atexit
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from saghog_jax.input_pipeline.errors import RunError, UserError, check_choice

MODES = ("off", "auto", "explicit")
PEER_FAILED = 4  # Exit status of a process that stops because another one has.
_BARRIER_MS = 7 * 24 * 3600 * 1000  # Who waits is woken by the watch, not by a time.
_SHUTDOWN_SECONDS = 30
_NOTICE_SECONDS = 3.0  # A failed process stays so long, for the others to learn why.
# What errors say that a collective or the coordinator gives when a process has gone.
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "NCCL", "Connection closed by peer")
_counter = itertools.count()
_watch: "_Watch | None" = None

T = TypeVar("T")


def initialize(config: ConfigDict) -> None:
    """Joins the other processes; must come before anything that makes jax look for devices.

    Args:
      config: `saghog_jax.configs.common.distributed_config()`.

    Raises:
      UserError: an unknown mode, nothing detected, fields missing, others that do not come.
    """
    global _watch
    check_choice("config.distributed.mode", config.mode, MODES)
    if config.mode == "off":
        return
    # jax would take SIGTERM for itself; a run tells the others by its batches that it should stop.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {
        "initialization_timeout": config.start_timeout,
        # The watch below should be the first to tell.
        "heartbeat_timeout_seconds": config.dead_after + 30,
        "shutdown_timeout_seconds": _SHUTDOWN_SECONDS,
    }
    if config.mode == "explicit":
        if ":" not in config.coordinator or not 0 <= config.process_id < config.num_processes:
            raise UserError(
                f"config.distributed.mode=explicit needs coordinator=HOST:PORT of process 0 and "
                f"process_id below num_processes, not {config.coordinator!r}, {config.process_id} "
                f"and {config.num_processes}"
            )
        arguments |= {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.distributed.mode={config.mode}: the processes could not be joined: {reason}"
        ) from None
    _watch = _Watch(_client(), config.dead_after)
    # Runs before jax's own: nobody is watched any more who waits for the last to finish.
    atexit.register(_watch.stop)
    print(
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )


def is_main() -> bool:
    """Whether this process writes what is written once: process 0, or the only one."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_main():
        print(line, flush=True)


def barrier(name: str) -> None:
    """Waits until all processes have come here; all must pass the same barriers in order."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"saghog/{name}/{next(_counter)}", _BARRIER_MS)


def main_first(function: Callable[[], T]) -> T:
    """`function()`, in the main process before all others: what it makes, they find."""
    if is_main():
        result = function()
        barrier("main_first")
        return result
    barrier("main_first")
    return function()


def allgather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, [processes, ...] on each: any type, bit for bit.

    Args:
      array: of the same shape and type on every process, and no objects.
    """
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes: jax would make 32-bit numbers of 64-bit ones, and knows no strings.
    raw = np.frombuffer(array.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(raw))
    return np.frombuffer(gathered.tobytes(), array.dtype).reshape(-1, *array.shape)


def broadcast(array: np.ndarray) -> np.ndarray:
    """The main process's array, on every process: any type, bit for bit.

    Args:
      array: of the same shape and type on every process, and no objects.
    """
    return allgather(array)[0]


def fail(error: BaseException, status: int) -> NoReturn:
    """Ends this process at once after an error, having told the others why.

    Python's own way would wait for the others, who wait for this one.
    """
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, UserError | RunError):
        print(f"error: {error}", file=sys.stderr)
    elif any(word in reason for word in _LOST):
        print(
            f"error: process {jax.process_index()} stops, because the connection to another one "
            f"broke, which has probably died ({reason})",
            file=sys.stderr,
        )
        status = PEER_FAILED
    else:
        traceback.print_exception(error)
    if _watch is not None:
        _watch.tell_failed(reason)
        time.sleep(_NOTICE_SECONDS)
    _exit(status)


def active() -> bool:
    """Whether this process works together with others."""
    return _watch is not None


def _client() -> Any:
    # jax has no public way to its coordinator's barriers and keys; orbax takes this one too.
    from jax._src.distributed import global_state

    return global_state.client


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Watch:
    """A thread that says that this process lives and ends it when another one has failed."""

    def __init__(self, client: Any, dead_after: float) -> None:
        self.dead_after = float(dead_after)
        self.period = min(2.0, dead_after / 5)
        self._client, self._me = client, jax.process_index()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Says that this process has finished; the others no longer expect signs of life."""
        if not self._stop.is_set():
            self._stop.set()
            self._put("alive", "done")

    def tell_failed(self, reason: str) -> None:
        """Leaves the reason where the others look."""
        self._stop.set()
        self._put("failed", " ".join(reason.split())[:500])

    def _put(self, key: str, value: str) -> bool:
        try:
            self._client.key_value_set(f"saghog/{key}/{self._me}", value, allow_overwrite=True)
        except Exception:  # whatever the coordinator's absence is called in this version
            return False
        return True

    def _get(self, key: str) -> dict[int, str] | None:
        try:
            found = self._client.key_value_dir_get(f"saghog/{key}/")
        except Exception:
            return None
        return {int(name.rsplit("/", 1)[1]): value for name, value in found}

    def _run(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        answered = time.monotonic()
        for beat in itertools.count():
            if self._stop.wait(self.period):
                return
            now = time.monotonic()
            sent = self._put("alive", str(beat))
            failed, alive = self._get("failed"), self._get("alive")
            if self._stop.is_set():
                return
            for process, reason in (failed or {}).items():
                self._end(f"process {process} has failed ({reason})")
            if sent and alive is not None:
                answered = now
            elif now - answered > self.dead_after:
                self._end(f"the coordinator has not answered for {self.dead_after:.0f} s")
            for process, value in (alive or {}).items():
                if value != seen.get(process, ("", 0.0))[0]:
                    seen[process] = (value, now)
                elif value != "done" and now - seen[process][1] > self.dead_after:
                    self._end(f"process {process} has given no sign for {self.dead_after:.0f} s")

    def _end(self, why: str) -> NoReturn:
        print(
            f"error: process {self._me} stops, because {why}; "
            "the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        _exit(PEER_FAILED)
