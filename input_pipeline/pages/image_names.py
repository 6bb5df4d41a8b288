"""Images in a folder and below, and what regular expressions find in their names."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES

# Examples that a message names.
_NAMED = 3


def search(
    folder: Path, expressions: Mapping[str, str], reserved: Collection[str] = ()
) -> tuple[list[str], list[dict[str, str]], list[str]]:
    """What regular expressions find in the names of the images in a folder and below.

    Args:
      folder: see `sources.scan_folder`.
      expressions: for each label its expression, used as `sources.scan_folder` uses them; empty
        ones are left out.
      reserved: names that no group may have.

    Returns:
      sorted paths of the images below the folder; for each the values of labels and named groups;
      and the named groups in order.

    Raises:
      UserError: see `sources.scan_folder`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = sorted(_image_names(folder))
    if not names:
        raise UserError(f"{folder} holds no image, known: {' '.join(IMAGE_SUFFIXES)}")
    found: list[dict[str, str]] = [{} for _ in names]
    groups: list[str] = []
    for label, regex in expressions.items():
        if regex:
            expression = _compile(label, regex, reserved)
            _search(expression, label, names, found)
            groups += [group for group in expression.groupindex if group not in groups]
    return names, found, groups


def _image_names(folder: Path) -> Iterator[str]:
    for path in below(folder):
        if path.lower().endswith(IMAGE_SUFFIXES):
            if not _is_utf8(path):
                raise UserError(f"{folder}: the file name {path!r} is not UTF-8; rename the file")
            yield path


def below(folder: Path) -> Iterator[str]:
    """Paths of the files below the folder, relative to it, with forward slashes; no hidden ones."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        for name in files:
            if not name.startswith("."):
                yield (below / name).as_posix()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _compile(label: str, regex: str, reserved: Collection[str]) -> re.Pattern[str]:
    where = f"data.{label}_regex={regex!r}"
    try:
        expression = re.compile(regex)
    except re.error as error:
        raise UserError(f"{where} is not a regular expression: {error}") from None
    if not expression.groups:
        raise UserError(f"{where} has no group; put the part that is the {label} in parentheses")
    taken = set(reserved) & set(expression.groupindex)
    if taken:
        raise UserError(f"{where}: a group cannot be named {min(taken)!r}")
    return expression


def _search(
    expression: re.Pattern[str], label: str, names: Sequence[str], found: list[dict[str, str]]
) -> None:
    """Adds to `found` what the expression finds in each of the names."""
    missed = []
    for name, values in zip(names, found):
        match = expression.search(name)
        if match is None:
            missed.append(name)
            continue
        values.update(match.groupdict(default=""))
        group = label if label in expression.groupindex else 1
        values[label] = match[group] or ""
    if missed:
        named = ", ".join(map(repr, missed[:_NAMED]))
        raise UserError(
            f"data.{label}_regex={expression.pattern!r} does not match {len(missed)} of "
            f"{len(names)} images, such as {named}; a part that may be missing can be made "
            "optional with `?`"
        )
