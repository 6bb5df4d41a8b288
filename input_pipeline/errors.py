"""Errors that are no faults of the program, each with a message of one line, and checks."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user; printed as one line, without a traceback."""


class PageError(ValueError):
    """A page cannot be used; the message is the reason that is listed with the page."""


class NoWritingError(PageError):
    """A page has no writing."""


class RunError(RuntimeError):
    """A run cannot continue because of its data or its machine; also printed as one line."""


class StoppedError(Exception):
    """A signal stopped a run, which has saved its state; `signal` is the number of the signal."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Checks that a value is one of the known ones.

    Args:
      name: what the value is, such as `config.loss.kind`.

    Raises:
      UserError: the value is unknown; the message lists the known ones.
    """
    known = tuple(known)
    if value not in known:
        raise UserError(unknown_choice(name, value, known))


def unknown_choice(name: str, value: object, known: Iterable[str], suggest: bool = False) -> str:
    """The message about a value that is not one of the known ones.

    Args:
      suggest: adds the most similar known value, if one is similar.
    """
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1) if suggest else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {name} {value!r}, known: {', '.join(known) or 'none'}{hint}"
