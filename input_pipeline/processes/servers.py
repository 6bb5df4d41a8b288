"""Server processes: each creates a function once and then answers calls of this function."""

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
    """Several processes with the same function; the same number of threads may use `call` at once.

    The processes are small (spawned, without the main program's modules), use one thread each, and
    end with `close` or with this process.
    """

    def __init__(
        self, make: Callable[..., Callable[[Job], Result]], args: tuple, count: int
    ) -> None:
        """Starts `count` processes, each with the function make(*args).

        Args:
          make: creates the function; pickled.
          args: of `make`; pickled.
          count: number of processes.
        """
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
        """Waits for a free process and returns its function(job).

        Raises:
          UserError: the process was killed.
          Exception: the exception that the function raised.
        """
        connection = self._free.get()
        try:
            connection.send(job)
            done, result = connection.recv()
        except (EOFError, OSError):
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; if so, lower the number "
                f"of workers (now {len(self._processes)}, --config...workers)"
            ) from None
        finally:
            self._free.put(connection)
        if not done:
            raise result
        return result

    def close(self) -> None:
        """Ends the processes; threads that wait in `call` get an error."""
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
