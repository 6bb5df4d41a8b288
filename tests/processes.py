"""Starting the program of regression.py, and others, as processes of a test."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from places import ROOT

from saghog_jax.runs.checkpoint import load_variables

PROGRAM = [sys.executable, str(ROOT / "tests" / "regression.py")]


def environment(devices: int) -> dict[str, str]:
    """That of these tests, with another number of fake devices."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }


def start(words: list[str], devices: int = 1, **environ: str) -> subprocess.Popen:
    """A process whose output can be read line by line."""
    return subprocess.Popen(
        words, env=environment(devices) | environ, cwd=ROOT, text=True, bufsize=1,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def regression(folder: Path, changes: dict, trouble: dict | None = None, **options):
    """A run of regression.py in `folder`."""
    words = [str(folder), json.dumps(changes), json.dumps(trouble or {})]
    return start([*PROGRAM, *words], **options)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(folder: Path, n: int, changes: dict, trouble: dict | None = None, devices: int = 1):
    """`n` processes of one run."""
    fields = {
        "distributed.mode": "explicit",
        "distributed.coordinator": f"127.0.0.1:{free_port()}",
        "distributed.num_processes": n,
        "distributed.dead_after": 20,
        "distributed.start_timeout": 120,
    }
    return [
        regression(
            folder,
            {**changes, **fields, "distributed.process_id": i},
            trouble,
            devices=devices,
        )
        for i in range(n)
    ]


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Reads lines until one holds `text`; returns it.

    Raises:
      AssertionError: the output ends before.
    """
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"no {text!r} in:\n" + "".join(lines))


def ended(*processes: subprocess.Popen, within: float = 400.0) -> list[tuple[int, str]]:
    """Exit status and remaining output of each; none may take longer."""
    until = time.monotonic() + within
    found = []
    for process in processes:
        try:
            out, _ = process.communicate(timeout=max(until - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        found.append((process.returncode, out))
    return found


def parameters(folder: Path) -> dict[str, np.ndarray]:
    """The trained arrays of a run."""
    return load_variables(folder, ("mae",))[0]["params"]["encoder"]


def losses(folder: Path) -> dict[int, float]:
    """The loss of every logged step."""
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
