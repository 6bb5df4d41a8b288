"""When to report the progress of long work, and short texts for durations."""

import time
from typing import NamedTuple

_INTERVAL = 10.0


class Progress(NamedTuple):
    """Seconds since the start of the work, and the expected seconds until its end."""

    elapsed: float
    remaining: float


class ProgressTimer:
    """Tells every ten seconds that the progress of some work should be reported.

    Args:
      total: the number of items to process.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last = time.monotonic()

    def due(self, done: int) -> Progress | None:
        """The progress after `done` items if a report is due now, else None.

        No report is due after the last item: callers report the end themselves.
        """
        now = time.monotonic()
        if now - self._last <= _INTERVAL or done >= self._total:
            return None
        self._last = now
        elapsed = now - self._start
        return Progress(elapsed, elapsed / done * (self._total - done))


def duration(seconds: float) -> str:
    """A short text for a duration: `75` becomes `1m15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
