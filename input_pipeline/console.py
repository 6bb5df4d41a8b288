"""Shows the messages of the library on the screen.

Modules of the library print nothing. They log to `logging.getLogger(__name__)`, below the logger
`saghog_jax`: progress and results at the level INFO, remarks about doubtful input at WARNING.
"""

import logging
import sys


class _Console(logging.Handler):
    """Writes each message as one bare line to the standard output of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        # An output that cannot be written raises here, as `print` does.
        print(self.format(record), file=sys.stdout, flush=True)


def show_messages() -> None:
    """Shows the messages of the library from level INFO on; further calls change nothing.

    Programs call this once. Worker processes do not, so they show no message.
    """
    logger = logging.getLogger("saghog_jax")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    logger.setLevel(logging.INFO)
    # The handlers of other libraries at the root logger would show each message a second time.
    logger.propagate = False
