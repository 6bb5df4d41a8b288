"""The short form of the command line: `saghog scans FOLDER`, and `saghog STAGE FIELD=VALUE ...`.

It is rewritten to the long form, `--config=configs/STAGE.py --config.FIELD=VALUE ...`, which does
the work.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import NoReturn

from saghog_jax.input_pipeline.console import say
from saghog_jax.input_pipeline.errors import UserError, unknown_choice
from saghog_jax.stages import STAGES

_HELP = ("--help", "-help", "-h", "help")

HELP = """saghog finds pages that were written by the same hand.

  saghog scans FOLDER            from a folder of page images to a report
  saghog search NEW FOLDER-saghog
                                 the pages of that collection that are nearest to new pages
  saghog STAGE FIELD=VALUE ...   one stage; stages: {stages}
  saghog STAGE --help            the fields of a stage, such as embed or embed:small
  saghog scans --help            the options of the first two commands
  saghog --version

Give a stopped command again: it goes on."""

SCANS = """From a folder of page images to a report.

  saghog scans FOLDER
  saghog search NEW FOLDER-saghog

FOLDER holds images of pages, with or without subfolders; a PDF, a table of pages (CSV) or a IIIF
manifest will do as well. Nothing is written into it: everything goes to FOLDER-saghog, and the
report is FOLDER-saghog/report.html. Give the same command again when pages were added: only the new
ones are described. The second command compares new pages with the pages of an earlier work folder.

  --workdir=PLACE      where the results go, instead of FOLDER-saghog
  --open               open the report in the browser
  checkpoint=RUN       the folder of a trained model
  scale=2.0            resize all pages by this factor, instead of the one that is found
  top_k=10             pages that are shown for each page

Every field of configs/scans.py can be given as FIELD=VALUE. This command lists the fields:
python -m saghog_jax.main --config=configs/scans.py --help"""


def long_form(words: Sequence[str]) -> list[str]:
    """The words of the long form for those of the short form; `words` has no program name.

    Raises:
      UserError: the stage is unknown, or a word is no field, flag or folder that it takes.
    """
    stage, colon, argument = words[0].partition(":")
    if stage not in STAGES:
        raise UserError(unknown_choice("stage", stage, STAGES, suggest=True))
    flags = [word for word in words[1:] if word.startswith("-")]
    fields = [word for word in words[1:] if "=" in word and word not in flags]
    places = [word for word in words[1:] if word not in flags and word not in fields]
    # Two folders are pages and the work folder of a collection; fields are those of the stage.
    if stage == "search" and places:
        if len(places) != 2:
            raise UserError(f"saghog search takes new pages and a work folder, not {places}")
        stage, fields = "scans", [f"gallery={places.pop()}", *fields]
    if stage == "scans" and places:
        fields.insert(0, f"data.pages={places.pop(0)}")
    if places:
        raise UserError(f"unexpected argument {places[0]!r}; fields are set as FIELD=VALUE")
    flags = ["--config.open=True" if flag == "--open" else flag for flag in flags]
    config = f"--config=configs/{stage}.py{colon}{argument}"
    return [config, *(f"--config.{field}" for field in fields), *flags]


def run() -> None:
    """Entry point of `saghog` and of `python -m saghog_jax`; takes both forms."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        _show_short_help(words)
        try:
            words = long_form(words)
        except UserError as error:
            _end(f"error: {error}", 2)
    elif words == ["--version"]:
        _end(importlib.metadata.version("saghog_jax"))
    elif not any(word.startswith("--config") for word in words):
        _end(HELP.format(stages=", ".join(STAGES)), 0 if words else 2)
    sys.argv[1:] = words
    # Imported late: it defines the flags of the process.
    from saghog_jax.main import run_main

    run_main()


def _show_short_help(words: Sequence[str]) -> None:
    """Ends the process with the help of the two short commands, where it is asked for."""
    if words[0] == "help":
        _end(HELP.format(stages=", ".join(STAGES)))
    asked = any(word in _HELP for word in words[1:])
    fields = any("=" in word for word in words[1:])
    if words[0] in ("scans", "search") and asked and not fields:
        _end(SCANS)


def _end(text: str, status: int = 0) -> NoReturn:
    if status:
        print(text, file=sys.stderr)
    else:
        say(text)
    sys.exit(status)
