"""Messages of the library reach the screen as bare lines, once a program asks for them."""

import logging
import pathlib
import subprocess
import sys

import pytest

from saghog_jax.input_pipeline import console


def test_messages_are_bare_lines_on_standard_output(capsys):
    console.show_messages()
    console.show_messages()
    logger = logging.getLogger("saghog_jax.some.module")
    logger.debug("details")
    logger.info("3 pages, 50%% of %s", "them")
    logger.warning("page 'a' skipped")
    assert capsys.readouterr() == ("3 pages, 50% of them\npage 'a' skipped\n", "")


def test_nothing_is_shown_unless_a_program_asks():
    lines = "import logging; logging.getLogger('saghog_jax.x').info('a message')"
    show = "from saghog_jax.input_pipeline.console import show_messages; show_messages(); "
    for before, output in (("", ""), (show, "a message\n")):
        done = subprocess.run(
            [sys.executable, "-c", before + lines], capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == (output, "")


def test_work_goes_on_when_nobody_reads_the_output(tmp_path):
    """As `| head -1` does: the reader leaves after the first line."""
    program = f"""
import logging, os, pathlib, subprocess, sys
from saghog_jax.input_pipeline.console import show_messages
show_messages()
for line in range(20_000):
    logging.getLogger("saghog_jax.x").info(f"line {{line}}")
print("a line of another library")
subprocess.run([sys.executable, "-c", "print(1)"], check=True)
pathlib.Path({str(tmp_path / "end")!r}).write_text("done")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "done"


def test_a_full_disk_is_still_an_error():
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    program = "from saghog_jax.input_pipeline.console import say; say('a line')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=-1, text=True)
    assert done.returncode != 0
    assert "No space left" in done.stderr
