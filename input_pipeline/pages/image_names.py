"""Lists the images in a folder and its subfolders, and reads labels from their names."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES, PDF_SUFFIX
from saghog_jax.input_pipeline.unicode_forms import composed

# Examples that a message names: of files, and of names that an expression does not match.
_SHOWN, _NAMED = 5, 3


# Folders, in small letters, in which file servers, systems and programs keep previews, deleted
# files and copies. Hidden folders (`.AppleDouble`, `.Trashes`) are left out anyway.
SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "~snapshot"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"),
        *("__macosx", "thumbs", "thumbnails", "network trash folder", "temporary items"),
    )
)
# Files that systems write beside images.
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini")


class Listing(NamedTuple):
    """The files of a folder and its subfolders: sorted paths below it, with forward slashes.

    images, pdfs: by their suffixes.
    others: files of other kinds.
    folders: folders that were not entered: SYSTEM_FOLDERS, and links to a folder that holds the
      folder itself.
    """

    images: list[str]
    pdfs: list[str]
    others: list[str]
    folders: list[str]


def search(
    folder: Path, expressions: Mapping[str, str], reserved: Collection[str] = ()
) -> tuple[list[str], list[dict[str, str]], list[str]]:
    """Lists the images in a folder and its subfolders, and matches regular expressions with names.

    Args:
      folder: see `list_files`.
      expressions, reserved: see `match`.

    Returns:
      sorted paths of the images below the folder, and what `match` returns.

    Raises:
      UserError: there is no image, or see `list_files` and `match`.
    """
    listing = list_files(folder)
    check_images(folder, listing)
    return listing.images, *match(listing.images, expressions, reserved)


def check_images(folder: Path, listing: Listing) -> None:
    """Checks that a folder holds images.

    Raises:
      UserError: it holds none; the message names the files that it holds.
    """
    if listing.images:
        return
    others = [*listing.pdfs, *listing.others]
    held = f"; it holds {len(others):,} other files: {named(others)}" if others else ""
    raise UserError(f"{folder} holds no image, known: {' '.join(IMAGE_SUFFIXES)}{held}")


def named(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def match(
    names: Sequence[str], expressions: Mapping[str, str], reserved: Collection[str] = ()
) -> tuple[list[dict[str, str]], list[str]]:
    """Matches regular expressions with the names of images, both in Unicode's form NFC.

    Args:
      expressions: the expression of each label, with the meaning described in
        `sources.scan_folder`; empty expressions are left out.
      reserved: names that no group may have, however they are capitalised.

    Returns:
      for each image the values of labels and named groups; and the names of the groups in order.

    Raises:
      UserError: an expression is malformed, has no group or a forbidden one, or does not match.
    """
    names = [composed(name) for name in names]
    values: list[dict[str, str]] = [{} for _ in names]
    groups: list[str] = []
    for label, regex in expressions.items():
        if regex:
            expression = _compile(label, composed(regex), reserved)
            _search(expression, label, names, values)
            groups += [group for group in expression.groupindex if group not in groups]
    return values, groups


def list_files(folder: Path) -> Listing:
    """Lists a folder and its subfolders, without hidden files and folders and SYSTEM_FOLDERS.

    Links to folders are followed, unless the folder is listed already or holds `folder` itself.

    Raises:
      UserError: the folder does not exist, a folder cannot be read, or the name of an image is not
        UTF-8.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    listing = Listing([], [], [], [])
    seen = {str(parent) for parent in folder.resolve().parents}
    above = frozenset(seen)
    links = _walk(folder, folder, listing, seen)
    # Links wait for the folders proper, whose paths are the natural ones.
    while links:
        link = min(links)
        links.remove(link)
        target = os.path.realpath(link)
        if target in above:
            listing.folders.append(link.relative_to(folder).as_posix())
        else:
            # `_walk` passes over folders that it has seen.
            links |= _walk(link, folder, listing, seen)
    for names in listing:
        names.sort()
    return listing


def _walk(top: Path, folder: Path, listing: Listing, seen: set[str]) -> set[Path]:
    """Adds the files below `top` to the listing and the folders to `seen`; returns links."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None

    links = set()
    for parent, folders, files in os.walk(top, onerror=fail):
        here = Path(parent)
        target = os.path.realpath(here)
        if target in seen:
            folders.clear()
            continue
        seen.add(target)
        names = [name for name in folders if not name.startswith(".")]
        known = {name for name in names if name.lower() in SYSTEM_FOLDERS}
        listing.folders.extend((here / name).relative_to(folder).as_posix() for name in known)
        links |= {here / name for name in names if name not in known and (here / name).is_symlink()}
        # `walk` does not enter links.
        folders[:] = [name for name in names if name not in known]
        below = here.relative_to(folder)
        for name in files:
            if not name.startswith(".") and name.lower() not in _SYSTEM_FILES:
                _add(folder, (below / name).as_posix(), listing)
    return links


def _add(folder: Path, path: str, listing: Listing) -> None:
    if path.lower().endswith(IMAGE_SUFFIXES):
        if not _is_utf8(path):
            raise UserError(f"{folder}: the file name {path!r} is not UTF-8; rename the file")
        listing.images.append(path)
    elif path.lower().endswith(PDF_SUFFIX):
        listing.pdfs.append(path)
    else:
        listing.others.append(path)


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
    known = {*reserved, "writer", "page", "split", "scale"}
    forbidden = {
        group
        for group in expression.groupindex
        if group in reserved or (group.lower() in known and group not in known)
    }
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
        examples = ", ".join(map(repr, missed[:_NAMED]))
        raise UserError(
            f"data.{label}_regex={expression.pattern!r} does not match {len(missed)} of "
            f"{len(names)} images, such as {examples}; a part that may be missing can be made "
            "optional with `?`"
        )
