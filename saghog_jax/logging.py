"""What a run tells: a line of metrics a logged step, on the screen and in metrics.jsonl."""

import json
import time
from pathlib import Path

from input_pipeline.errors import RunError
from saghog_jax import distributed
from saghog_jax.files import replacing


def duration(seconds: float) -> str:
    """`75` as `1m15s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class MetricsLog:
    """metrics.jsonl of a run and its progress lines.

    Lines of steps after `start_step` are dropped when a run goes on: those steps happen again.
    """

    def __init__(
        self, run_folder: Path, start_step: int, total_steps: int, batch_size: int
    ) -> None:
        self._path = run_folder / "metrics.jsonl"
        self._total, self._batch_size = total_steps, batch_size
        # Of several processes one tells what all have done.
        self._silent = not distributed.is_main()
        if self._path.exists() and not self._silent:
            kept = [s for s in self._path.read_text().splitlines() if _step(s) <= start_step]
            with replacing(self._path, "w") as file:
                file.write("".join(line + "\n" for line in kept))
        self._last_step, self._last_time, self._waited = start_step, time.monotonic(), 0.0

    def waited_for_data(self, seconds: float) -> None:
        self._waited += seconds

    def restart_clock(self, step: int) -> None:
        """Leaves what happened so far (compilation, saving) out of the next rate."""
        self._last_step, self._last_time, self._waited = step, time.monotonic(), 0.0

    def leave_out(self, seconds: float) -> None:
        """Leaves seconds in which no update ran (evaluation, saving) out of the next rate."""
        self._last_time += seconds

    def write_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Writes and prints what was found on held-out pages after update `step`."""
        if not self._silent:
            self._append({"step": step, **figures})
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"step {step:{len(str(self._total))}d}/{self._total}  {shown}", flush=True)

    def _append(self, record: dict[str, float]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"{self._path} could not be written: {error.strerror}") from None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes and prints the metrics of update `step`."""
        if self._silent:
            return
        elapsed = max(time.monotonic() - self._last_time, 1e-9)
        steps = step - self._last_step
        rate = steps * self._batch_size / elapsed
        wait = self._waited / elapsed
        record = {"step": step, **metrics, "patches_per_second": rate, "data_wait_share": wait}
        self._append(record)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        eta = duration((self._total - step) * elapsed / max(steps, 1))
        width = len(str(self._total))
        print(
            f"step {step:{width}d}/{self._total}  {shown}  {rate:,.0f} patches/s  "
            f"data wait {wait:.0%}  ETA {eta}",
            flush=True,
        )
        self.restart_clock(step)


def _step(line: str) -> float:
    """The step of a metrics line; a torn line, as a kill leaves it, counts as never written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
