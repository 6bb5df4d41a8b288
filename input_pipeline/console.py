"""Shows the messages of the library on the screen.

Modules of the library print nothing. They log to `logging.getLogger(__name__)`, below the logger
`saghog_jax`: progress and results at the level INFO, remarks about doubtful input at WARNING,
numbers for readers who know the methods at DEBUG.
"""

import contextlib
import io
import logging
import os
import sys


class _Console(logging.Handler):
    """Writes each message as one bare line to the standard output of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        # An output that cannot be written raises here, as `print` does.
        say(self.format(record))


def say(line: str) -> None:
    """Prints a line. Work goes on if nobody reads the output any longer (`| head`)."""
    try:
        print(line, file=sys.stdout, flush=True)
    except BrokenPipeError:
        _forget_output()


def _forget_output() -> None:
    """Sends the standard output to nowhere, for this process and its child processes."""
    with contextlib.suppress(OSError, io.UnsupportedOperation), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def show_messages(details: bool = False) -> None:
    """Shows the messages of the library from level INFO on; with `details`, from level DEBUG on.

    Programs call this once. Worker processes do not, so they show no message.
    """
    logger = logging.getLogger("saghog_jax")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    logger.setLevel(logging.DEBUG if details else logging.INFO)
    # The handlers of other libraries at the root logger would show each message a second time.
    logger.propagate = False
