"""Tests run on eight fake CPU devices, with strict dtype promotion and a compilation cache.

`--golden-errors` adds how far ours is from every stored array, see golden_rows.py.
"""

import os
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / f"saghog_jax-test-cache-{os.getuid()}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"

import pytest
from absl import flags

from saghog_jax.input_pipeline.console import show_messages

# grain reads absl flags when it starts worker processes; nothing here has a command line.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def _messages_are_shown():
    """Tests read the messages of the library from standard output, as users do."""
    show_messages()


def pytest_addoption(parser):
    parser.addoption(
        "--golden-errors",
        action="store_true",
        help="report which arrays of tests/golden were read, and the largest difference from ours",
    )


def pytest_configure(config):
    if config.getoption("golden_errors"):
        from golden_rows import Record

        config.pluginmanager.register(Record())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were not made for want of a browser."""
    skipped = [r for r in terminalreporter.stats.get("skipped", ()) if "browser" in r.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} browser tests skipped: no Chromium found")
