"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

import logging
from pathlib import Path

import jax

from saghog_jax.input_pipeline.errors import UserError

logger = logging.getLogger(__name__)


class Profiler:
    """Writes `profile/` of a run folder during the steps of `span`.

    Args:
      span: `FIRST,LAST`, steps counted from 1; empty for no trace.
      folder: the run folder.

    Raises:
      UserError: `span` is not two ascending steps.
    """

    def __init__(self, span: str, folder: Path) -> None:
        self.folder = folder / "profile"
        self._first, self._last = _parse(span)
        self._running = False

    def before(self, step: int) -> None:
        """Must be called before update `step` is dispatched."""
        if step == self._first:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, result: object) -> None:
        """Must be called after update `step` is dispatched; `result` is its output."""
        if self._running and step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a running trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info(f"profile of steps {self._first} to {self._last}: {self.folder}")


def _parse(span: str) -> tuple[int, int]:
    if not span:
        return 0, 0
    parts = span.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"config.profile={span!r} must be FIRST,LAST, two steps such as 10,20")
    first, last = (int(part) for part in parts)
    if not 1 <= first <= last:
        raise UserError(
            f"config.profile={span!r}: steps are counted from 1, and FIRST must not exceed LAST"
        )
    return first, last
