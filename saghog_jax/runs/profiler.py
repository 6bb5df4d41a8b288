"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

import logging
from pathlib import Path

import jax

from saghog_jax.input_pipeline.errors import UserError

logger = logging.getLogger(__name__)


class Profiler:
    """Writes PROFILE/ of a run folder while the steps that `span` names are under way.

    Args:
      span: `FIRST,LAST`, steps counted from 1; empty: nothing is traced.
      folder: the run folder.

    Raises:
      UserError: no such span.
    """

    def __init__(self, span: str, folder: Path) -> None:
        self.folder = folder / "profile"
        self._first, self._last = _parse(span)
        self._running = False

    def before(self, step: int) -> None:
        """Called before update `step` is given to the device."""
        if step == self._first:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, result: object) -> None:
        """Called when update `step`, which gives `result`, has been given to the device."""
        if self._running and step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info(f"profile of steps {self._first} to {self._last}: {self.folder}")


def _parse(span: str) -> tuple[int, int]:
    if not span:
        return 0, 0
    parts = span.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"config.profile={span!r} is not FIRST,LAST, two steps such as 10,20")
    first, last = (int(part) for part in parts)
    if not 1 <= first <= last:
        raise UserError(f"config.profile={span!r}: steps are counted from 1, the first comes first")
    return first, last
