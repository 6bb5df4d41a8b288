"""Lists the images in a folder and its subfolders, and reads labels from their names."""

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
    """Lists the images in a folder and its subfolders, and matches regular expressions with names.

    Args:
      folder: see `sources.scan_folder`.
      expressions: the expression of each label, with the meaning described in
        `sources.scan_folder`; empty expressions are left out.
      reserved: names that no group may have.

    Returns:
      sorted paths of the images below the folder; for each image the values of labels and named
      groups; and the names of the groups in order.

    Raises:
      UserError: see `sources.scan_folder`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = sorted(_image_names(folder))
    if not names:
        raise UserError(f"{folder} holds no image, known: {' '.join(IMAGE_SUFFIXES)}")
    values: list[dict[str, str]] = [{} for _ in names]
    groups: list[str] = []
    for label, regex in expressions.items():
        if regex:
            expression = _compile(label, regex, reserved)
            _search(expression, label, names, values)
            groups += [group for group in expression.groupindex if group not in groups]
    return names, values, groups


def _image_names(folder: Path) -> Iterator[str]:
    for path in below(folder):
        if path.lower().endswith(IMAGE_SUFFIXES):
            if not _is_utf8(path):
                raise UserError(f"{folder}: the file name {path!r} is not UTF-8; rename the file")
            yield path


def below(folder: Path) -> Iterator[str]:
    """Paths of all files below the folder, relative, with forward slashes; without hidden files."""

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
    forbidden = set(reserved) & set(expression.groupindex)
    if forbidden:
        raise UserError(f"{where}: a group cannot be named {min(forbidden)!r}")
    return expression


def _search(
    expression: re.Pattern[str], label: str, names: Sequence[str], values: list[dict[str, str]]
) -> None:
    """Adds the label and the named groups of each name to its dict in `values`."""
    missed = []
    for name, labels in zip(names, values):
        match = expression.search(name)
        if match is None:
            missed.append(name)
            continue
        labels.update(match.groupdict(default=""))
        group = label if label in expression.groupindex else 1
        labels[label] = match[group] or ""
    if missed:
        named = ", ".join(map(repr, missed[:_NAMED]))
        raise UserError(
            f"data.{label}_regex={expression.pattern!r} does not match {len(missed)} of "
            f"{len(names)} images, such as {named}; a part that may be missing can be made "
            "optional with `?`"
        )
