"""Messages of the library reach the screen as bare lines, once a program asks for them."""

import logging
import subprocess
import sys

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
