"""Processes that stay: each makes a function once and then answers calls of it."""

import multiprocessing
import queue
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.workers import hidden_main, start_worker

Job = TypeVar("Job")
Result = TypeVar("Result")


class Servers(Generic[Job, Result]):
    """Some processes with the same function; `call` may be used by as many threads at once.

    They are light (spawned, without the main program's modules), keep to one thread, and end with
    `close` or with this process.
    """

    def __init__(
        self, make: Callable[..., Callable[[Job], Result]], args: tuple, count: int
    ) -> None:
        """Starts `count` processes, each with the function make(*args); both go by pickle."""
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._connections: list[Connection] = []
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        with hidden_main():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
                self._free.put(ours)

    def call(self, job: Job) -> Result:
        """Returns function(job) of a process that is free, waiting for one.

        Raises:
          UserError: the process was killed.
          Exception: what the function raised.
        """
        connection = self._free.get()
        try:
            connection.send(job)
            done, result = connection.recv()
        except (EOFError, OSError):
            raise UserError(
                "a worker process was killed, perhaps for want of memory; if so, lower the number "
                f"of workers (now {len(self._processes)}, --config...workers)"
            ) from None
        finally:
            self._free.put(connection)
        if not done:
            raise result
        return result

    def close(self) -> None:
        """Ends the processes; whoever waits in `call` gets an error."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
            process.close()
        self._processes = []
        for connection in self._connections:
            connection.close()


def _serve(connection: Connection, make: Callable, args: tuple) -> None:
    start_worker()
    function = make(*args)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(job)
        except Exception as error:
            answer = False, error
        connection.send(answer)
