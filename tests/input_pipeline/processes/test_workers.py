"""Settings of worker processes."""

import subprocess
import sys

import pytest
from places import ROOT

FAULTS = """
import resource, sys
import numpy as np
from saghog_jax.input_pipeline.processes.workers import keep_memory
if sys.argv[1] == "keep":
    keep_memory()

def work():
    arrays = [np.ones(2**20, np.uint8) for _ in range(20)]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept():
    faults = {}
    for how in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], cwd=ROOT,
            capture_output=True, text=True, check=True, env={},
        )  # fmt: skip
        faults[how] = int(done.stdout)
    # 200 arrays of 256 pages of memory each.
    assert faults["keep"] < 1000
    assert faults["default"] > 10_000
