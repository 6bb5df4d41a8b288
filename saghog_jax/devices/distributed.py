"""Several processes of one run: joining, collective helpers, and stopping together.

Switched on by the config only; a process that cannot join the others fails and never runs alone. If
a process dies or raises an error, the others stop with a message. Each process sends heartbeats to
the coordinator, and a thread in each process watches the heartbeats of the others: a process that
waits in a collective operation for a dead process is never woken up.
"""

import atexit
import itertools
import logging
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
PEER_FAILED = 4  # Exit status of a process that stops because another process has failed.
_BARRIER_MS = 7 * 24 * 3600 * 1000  # Long: the watch thread ends a process that waits in vain.
_SHUTDOWN_SECONDS = 30
_NOTICE_SECONDS = 3.0  # A failed process waits so long, so that the others can read the reason.
# Words in the errors of collectives and of the coordinator when a process has gone.
_LOST = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "NCCL", "Connection closed by peer")
_counter = itertools.count()
_watch: "_Watch | None" = None
logger = logging.getLogger(__name__)

T = TypeVar("T")


def initialize(config: ConfigDict) -> None:
    """Joins the other processes; must be called before jax looks for devices.

    Args:
      config: `saghog_jax.configs.common.distributed_config()`.

    Raises:
      UserError: the mode is unknown, no cluster is detected, fields are missing, or the other
        processes do not join in time.
    """
    global _watch
    check_choice("config.distributed.mode", config.mode, MODES)
    if config.mode == "off":
        return
    # jax would catch SIGTERM; a run passes stop requests to the other processes in its updates.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {
        "initialization_timeout": config.start_timeout,
        # Later than the watch thread below, whose message is clearer.
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
    # Runs before the exit handler of jax, in which processes wait for each other.
    atexit.register(_watch.stop)
    logger.info(
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} devices"
    )


def is_main() -> bool:
    """Whether this is the main process: process 0, which alone writes shared files."""
    return jax.process_index() == 0


def log_once(logger: logging.Logger, message: str) -> None:
    """Logs a message at the level INFO, in the main process only."""
    if is_main():
        logger.info(message)


def barrier(name: str) -> None:
    """Waits for all processes; all must pass the same barriers in the same order."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"saghog/{name}/{next(_counter)}", _BARRIER_MS)


def main_first(function: Callable[[], T]) -> T:
    """Returns `function()`; the main process calls it first, so that the others reuse its files."""
    if is_main():
        result = function()
        barrier("main_first")
        return result
    barrier("main_first")
    return function()


def allgather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, [processes, ...], of any type, bit for bit.

    Args:
      array: of the same shape and type on every process; no object array.
    """
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes: jax would convert 64-bit numbers to 32 bits, and it has no strings.
    raw = np.frombuffer(array.tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(raw))
    return np.frombuffer(gathered.tobytes(), array.dtype).reshape(-1, *array.shape)


def broadcast(array: np.ndarray) -> np.ndarray:
    """The array of the main process, on every process, of any type, bit for bit.

    Args:
      array: of the same shape and type on every process; no object array.
    """
    return allgather(array)[0]


def fail(error: BaseException, status: int) -> NoReturn:
    """Reports an error to the other processes and ends this process at once.

    A normal exit of Python would wait for the others, which wait for this process.
    """
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, UserError | RunError):
        print(f"error: {error}", file=sys.stderr)
    elif any(word in reason for word in _LOST):
        print(
            f"error: process {jax.process_index()} stops, because the connection to another "
            f"process broke; that process has probably died ({reason})",
            file=sys.stderr,
        )
        status = PEER_FAILED
    else:
        traceback.print_exception(error)
    if _watch is not None:
        _watch.report_failure(reason)
        time.sleep(_NOTICE_SECONDS)
    _exit(status)


def active() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def _client() -> Any:
    # jax has no public access to the barriers and keys of its coordinator; orbax does the same.
    from jax._src.distributed import global_state

    return global_state.client


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Watch:
    """A thread that sends heartbeats and ends this process when another process has failed."""

    def __init__(self, client: Any, dead_after: float) -> None:
        self.dead_after = float(dead_after)
        self.period = min(2.0, dead_after / 5)
        self._client, self._process = client, jax.process_index()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tells the others that this process has finished and sends no more heartbeats."""
        if not self._stop.is_set():
            self._stop.set()
            self._put("alive", "done")

    def report_failure(self, reason: str) -> None:
        """Tells the others the reason of a failure."""
        self._stop.set()
        self._put("failed", " ".join(reason.split())[:500])

    def _put(self, key: str, value: str) -> bool:
        try:
            self._client.key_value_set(f"saghog/{key}/{self._process}", value, allow_overwrite=True)
        except Exception:  # The type of the error depends on the version of jax.
            return False
        return True

    def _get(self, key: str) -> dict[int, str] | None:
        try:
            entries = self._client.key_value_dir_get(f"saghog/{key}/")
        except Exception:
            return None
        return {int(name.rsplit("/", 1)[1]): value for name, value in entries}

    def _run(self) -> None:
        # The last heartbeat of each process, and the time of its arrival.
        heartbeats: dict[int, tuple[str, float]] = {}
        last_answer, limit = time.monotonic(), self.dead_after
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
                last_answer = now
            elif now - last_answer > limit:
                self._end(f"the coordinator has not answered for {limit:.0f} s")
            for process, value in (alive or {}).items():
                if value != heartbeats.get(process, ("", 0.0))[0]:
                    heartbeats[process] = (value, now)
                elif value != "done" and now - heartbeats[process][1] > limit:
                    self._end(f"process {process} has sent no heartbeat for {limit:.0f} s")

    def _end(self, reason: str) -> NoReturn:
        print(
            f"error: process {self._process} stops, because {reason}; "
            "repeat the command to continue from the last checkpoint",
            file=sys.stderr,
        )
        _exit(PEER_FAILED)
