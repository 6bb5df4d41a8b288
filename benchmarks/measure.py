"""What benchmarks share: alternating runs, peak memory in a fresh process, and figures as JSON.

report = Report("head")
times = alternate(7, ours=step, torch=torch_step)
report.add("ours", rates(times["ours"], work=256), "patches/s")
report.ratio("ours / torch", times["torch"], times["ours"], target=">= 5")
report.write(folder)
"""

import ctypes
import importlib.metadata
import json
import multiprocessing
import operator
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(os.environ.get("BENCHMARK_FOLDER", "runs/benchmarks"))
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "timm")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    return sum(os.times()[:4])


class Times(NamedTuple):
    """Seconds of the rounds of one side: on the clock, and of all threads of the process."""

    wall: list[float]
    cpu: list[float]


def alternate(
    rounds: int, warmup: int = 1, settle: int = 0, **sides: Callable[[], object]
) -> dict[str, Times]:
    """Runs the sides in turn, `rounds` times, every second time in reverse order.

    A side returns when its work is done: one that starts work on a device waits for it.

    Args:
      warmup: untimed runs of each side before all others.
      settle: untimed runs of a side in each turn, before the timed one. A step of training takes
        gigabytes that another side has just given back to the system; without it, what that costs
        falls on whoever comes next, by twice the time of a step.
    """
    for side in sides.values():
        for _ in range(warmup):
            side()
    times = {name: Times([], []) for name in sides}
    for round_ in range(rounds):
        for name in list(sides) if round_ % 2 == 0 else list(reversed(sides)):
            for _ in range(settle):
                sides[name]()
            wall, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def rates(times: Times, work: float, by: str = "wall") -> list[float]:
    """Units of work a second in each round, by the clock or (`cpu`) a second of one core."""
    return [work / seconds for seconds in getattr(times, by)]


class Peak(NamedTuple):
    """Memory in MiB: resident before the measured call, and at most while it ran."""

    before: float
    peak: float

    @property
    def growth(self) -> float:
        """What the call took beyond what was there."""
        return self.peak - self.before


def peak_memory(prepare: Callable[..., Callable[[], object]], *args: object) -> Peak:
    """Peak memory of the function that `prepare(*args)` returns, in a process of its own.

    What `prepare` does (loading, compiling) does not count. `prepare` is a function of a module,
    its arguments can be pickled. Linux only.

    Raises:
      RuntimeError: the process failed; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(theirs, prepare, args))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise RuntimeError(f"the process measured for {prepare.__name__} failed") from None
    finally:
        process.join()
    return Peak(*found)


def _measure_peak(connection, prepare: Callable, args: tuple) -> None:
    call = prepare(*args)
    if platform.libc_ver()[0] == "glibc":
        # What was freed goes back to the system, else the call could use it unnoticed.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    # Sets the peak back to what is resident now (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    result = call()
    connection.send((before, _status("VmHWM")))
    del result


def _status(field: str) -> float:
    """A field of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


class Report:
    """Figures of one benchmark, printed as they come and written as JSON with the machine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: list[dict] = []

    def add(self, name: str, values: Sequence[float] | float, unit: str, target: str = "") -> float:
        """Adds the median of `values` and their range; returns the median.

        Args:
          target: what is to be reached, a comparison with a number such as `>= 1.4`.
        """
        values = [values] if isinstance(values, int | float) else list(values)
        figure = {
            "name": name,
            "unit": unit,
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            "rounds": len(values),
            "values": values,
        }
        if target:
            sign, number = target.split()
            figure |= {"target": target, "holds": _COMPARE[sign](figure["median"], float(number))}
        self.figures.append(figure)
        print(line(figure), flush=True)
        return figure["median"]

    def ratio(
        self, name: str, above: Times, below: Times, target: str = "", by: str = "wall"
    ) -> float:
        """Adds how many times as long `above` took as `below`, round by round.

        Args:
          by: `wall`, the clock, or `cpu`, the seconds of all threads.
        """
        pairs = zip(getattr(above, by), getattr(below, by))
        return self.add(name, [a / b for a, b in pairs], "times", target)

    def write(self, folder: Path = FOLDER) -> Path:
        """Writes FOLDER/NAME.json."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = {
            "name": self.name,
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python", *sys.orig_argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "figures": self.figures,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written: {path}", flush=True)
        return path


def line(figure: dict) -> str:
    """A figure in words."""
    text = f"{figure['name']}: {figure['median']:.4g} {figure['unit']}"
    if figure["rounds"] > 1:
        text += f" ({figure['low']:.4g} to {figure['high']:.4g}, {figure['rounds']} rounds)"
    if "target" in figure:
        text += f"; wanted {figure['target']}: {'holds' if figure['holds'] else 'MISSED'}"
    return text


def machine() -> dict[str, object]:
    """Processor, cores this process may use, memory, system, and what was set for the libraries."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    models = [row.split(":", 1)[1].strip() for row in text.splitlines() if "model name" in row]
    flags = text.split()
    settings = ("GLIBC_TUNABLES", "OMP_NUM_THREADS", "XLA_FLAGS")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "settings": {name: os.environ[name] for name in settings if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed and imported."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found
