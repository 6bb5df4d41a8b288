"""The metrics of a run: a line for each logged step in metrics.jsonl, on the screen, in sinks."""

import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from saghog_jax.devices import distributed
from saghog_jax.input_pipeline.errors import RunError
from saghog_jax.input_pipeline.files import atomic_write
from saghog_jax.input_pipeline.progress import duration
from saghog_jax.runs.trackers import Sink

logger = logging.getLogger(__name__)


# Figures of an evaluation that are shown without `--verbosity=1`, in words.
_EVALUATION = {
    "validation_loss": "loss of held-out pages",
    "validation_map": "mAP of held-out pages",
    "validation_top1": "Top-1 of held-out pages",
}


class MetricsLog:
    """Writes metrics.jsonl of a run, its progress lines, and the same numbers to sinks.

    The screen shows the loss; all numbers are shown at the level DEBUG (`--verbosity=1`).

    When a run continues, lines of steps after `start_step` are dropped, because these steps are
    repeated.
    """

    def __init__(
        self,
        run_folder: Path,
        start_step: int,
        total_steps: int,
        global_batch_size: int,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._path = run_folder / "metrics.jsonl"
        self._total, self._global_batch_size = total_steps, global_batch_size
        # One process reports for all.
        self._silent = not distributed.is_main()
        if self._path.exists() and not self._silent:
            kept = [s for s in self._path.read_text().splitlines() if _step(s) <= start_step]
            with atomic_write(self._path, "w") as file:
                file.write("".join(line + "\n" for line in kept))
        self._last_step, self._last_time, self._waited = start_step, time.monotonic(), 0.0
        self._sinks = sinks

    def close(self) -> None:
        """Closes the sinks, which write their remaining numbers."""
        for sink in self._sinks:
            # A full disk has been reported already.
            with contextlib.suppress(OSError):
                sink.close()

    def waited_for_data(self, seconds: float) -> None:
        """Counts seconds in which a step waited for its batch."""
        self._waited += seconds

    def restart_clock(self, step: int) -> None:
        """Excludes the time until now (compilation, saving) from the next rate."""
        self._last_step, self._last_time, self._waited = step, time.monotonic(), 0.0

    def leave_out(self, seconds: float) -> None:
        """Excludes seconds without updates (evaluation, saving) from the next rate."""
        self._last_time += seconds

    def write_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Writes and shows the metrics of held-out pages after update `step`."""
        if not self._silent:
            self._append(step, figures)
            words = {name: value for name, value in figures.items() if name in _EVALUATION}
            logger.info(self._line(step, {_EVALUATION[name]: v for name, v in words.items()}))
            logger.debug(self._line(step, figures))

    def _line(self, step: int, figures: Mapping[str, float]) -> str:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        return f"step {step:{len(str(self._total))}d}/{self._total}  {shown}"

    def _append(self, step: int, figures: Mapping[str, float]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
            for sink in self._sinks:
                sink.add(step, figures)
        except OSError as error:
            place = error.filename or self._path.parent
            raise RunError(f"{place} could not be written: {error.strerror}") from None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and shows the metrics of update `step`."""
        if self._silent:
            return
        elapsed = max(time.monotonic() - self._last_time, 1e-9)
        steps = step - self._last_step
        rate = steps * self._global_batch_size / elapsed
        wait = self._waited / elapsed
        memory = memory_gib()
        speed = {"patches_per_second": rate, "data_wait_share": wait, "memory_gib": memory}
        self._append(step, metrics | speed)
        eta = duration((self._total - step) * elapsed / max(steps, 1))
        left = f"  about {eta} left" if step < self._total else ""
        logger.info(self._line(step, {"loss": metrics["loss"]}) + left)
        logger.debug(
            f"{self._line(step, metrics)}  {rate:,.0f} patches/s  data wait {wait:.0%}  "
            f"memory {memory:.1f} GiB"
        )
        self.restart_clock(step)


def memory_gib() -> float:
    """The peak memory so far in GiB: of the first device of this process, or of the process itself
    if the device does not report its memory (CPUs do not)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _step(line: str) -> float:
    """The step of a line; infinity for an incomplete line, as a killed process leaves it."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
