"""Reads the unpacked folders of a public collection as rows of a manifest; checks its counts."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from saghog_jax.input_pipeline.csv_files import read_table
from saghog_jax.input_pipeline.datasets.collection import Collection, Part, Row, Table
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import IMAGE_SUFFIXES

# Examples that a message names.
_NAMED = 3
_ADVICE = "unpack the archive again, or use check_counts=false to accept an incomplete copy"


def read_rows(
    collection: Collection,
    variant: str,
    manual_dir: Path,
    split: str = "",
    check_counts: bool = True,
) -> list[Row]:
    """Lists the pages of a collection, split by split, sorted by file name (2 before 10).

    Args:
      variant: a key of `collection.variants`.
      manual_dir: the archives were unpacked in this folder, or in its subfolder with the
        collection's name.
      split: only this split; all splits if empty.
      check_counts: whether the official counts must match. Otherwise files and whole splits may be
        missing.

    Raises:
      UserError: the split is unknown, a folder or table is missing (the message tells what to
        download) or damaged, a page occurs twice, or counts differ from the official counts.
    """
    where = collection.full_name(variant)
    known = collection.splits(variant)
    if split and split not in known:
        raise UserError(f"{where} has no split {split!r}, known: {', '.join(known)}")
    parts = [part for part in collection.variants[variant] if split in ("", part.split)]
    rows_of_splits: dict[str, list[Row]] = {}
    for part in parts:
        rows = _part_rows(collection, variant, part, manual_dir, check_counts)
        if rows:
            rows_of_splits[part.split] = rows
    if not rows_of_splits:
        raise _missing(collection, variant, manual_dir, [name for p in parts for name in p.folders])
    if check_counts and not split and collection.shared_writers is not None:
        _check_shared(where, collection.shared_writers, rows_of_splits)
    return [row for rows in rows_of_splits.values() for row in rows]


def _part_rows(
    collection: Collection, variant: str, part: Part, root: Path, check_counts: bool
) -> list[Row]:
    expression = re.compile(part.files, re.IGNORECASE)
    folder, names, others = _find_images(root, collection.name, part.folders, expression)
    if folder is None:
        if check_counts:
            raise _missing(collection, variant, root, part.folders)
        return []
    where = f"{collection.full_name(variant)}, split {part.split}"
    _check_twins(where, folder, names)
    labels: Mapping[str, dict[str, str]] = {name: {} for name in names}
    absent = 0
    if part.table:
        path = _find_table(part.table, folder, root)
        if path is None:
            raise _missing(collection, variant, root, part.table.names)
        labels, absent = _read_labels(path, part.table, names, check_counts)
    below = folder.relative_to(root)
    rows = []
    for name, cells in labels.items():
        groups = expression.fullmatch(name).groupdict(default="")
        values = {"page": Path(name).stem, **groups, **cells}
        if collection.relabel:
            values = collection.relabel(part.split, values)
        extra = {column: values.get(column, "") for column in collection.columns}
        path = (below / name).as_posix()
        rows.append(Row(path, values.get("writer", ""), values["page"], part.split, extra))
    if check_counts:
        siblings = [re.compile(p.files, re.IGNORECASE) for p in collection.variants[variant]]
        strange = [name for name in others if not any(s.fullmatch(name) for s in siblings)]
        _check_counts(where, folder, part, rows, absent, strange)
    return rows


def _missing(
    collection: Collection, variant: str, root: Path, what: tuple[str, ...] | list[str]
) -> UserError:
    state = "does not exist"
    if root.is_dir():
        state = f"does not hold {' or '.join(what)} with files named as in the archives"
    return UserError(
        f"{collection.full_name(variant)}: the manual folder {root} {state}; "
        f"{collection.instructions(variant)} (manual_dir=FOLDER names another one)"
    )


def _find_images(
    root: Path, name: str, patterns: tuple[str, ...], expression: re.Pattern[str]
) -> tuple[Path | None, list[str], list[str]]:
    """The first folder with matching images, the names of these images, and of its other images.

    The collection's folder `name` has priority. Folders are also searched one level deeper, and in
    a subfolder of the same name, because some programs unpack an archive into a folder with the
    archive's name.
    """
    for base in (root / name, root):
        for pattern in patterns:
            for folder in _folders(base, pattern):
                fitting, others = [], []
                for image in _image_names(folder):
                    (fitting if expression.fullmatch(image) else others).append(image)
                if fitting:
                    return folder, sorted(fitting, key=_natural), sorted(others)
    return None, [], []


def _folders(base: Path, pattern: str) -> Iterator[Path]:
    if pattern == ".":
        yield base
        return
    last = pattern.rsplit("/", 1)[-1]
    for place in (pattern, f"{pattern}/{last}", f"*/{pattern}"):
        yield from sorted(base.glob(place))


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
    return [n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")]


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"(\d+)|(\D+)", name)
    return [(not digits, int(digits or 0), text) for digits, text in parts], name


def _check_twins(where: str, folder: Path, names: list[str]) -> None:
    stems: dict[str, str] = {}
    for name in names:
        twin = stems.setdefault(Path(name).stem, name)
        if twin != name:
            raise UserError(
                f"{where}: {folder} holds one page twice, as {twin!r} and as {name!r}; delete one"
            )


def _find_table(table: Table, folder: Path, root: Path) -> Path | None:
    for place in (folder, *folder.parents[:2]):
        for name in table.names:
            if place.is_relative_to(root) and (place / name).is_file():
                return place / name
    return None


def _read_labels(
    path: Path, table: Table, names: list[str], check_counts: bool
) -> tuple[dict[str, dict[str, str]], int]:
    """Cells of each image that is listed and exists.

    Also returns the number of listed images that may be missing (`Table.absent`) and are missing.
    """
    header, rows = read_table(path)
    (file, *_) = _places(path, header, table.file)
    columns = {
        key: _places(path, header, regex, key in table.optional)
        for key, regex in table.columns.items()
    }
    last = max(file, *(place for places in columns.values() for place in places))
    listed: dict[str, dict[str, str]] = {}
    for line, cells in rows:
        if len(cells) <= last:
            raise UserError(f"{path} line {line}: {len(cells)} cells, {last + 1} are needed")
        name = cells[file].strip()
        if name in listed:
            raise UserError(f"{path} line {line}: {name!r} is listed twice")
        listed[name] = {
            key: "+".join(filter(None, (cells[place].strip() for place in places)))
            for key, places in columns.items()
        }
    absent = (table.absent & listed.keys()).difference(names)
    missing = sorted(listed.keys() - names - absent)
    if missing and check_counts:
        raise UserError(
            f"{path} lists {len(missing):,} images that do not exist, such as "
            f"{', '.join(map(repr, missing[:_NAMED]))}; {_ADVICE}"
        )
    return {name: listed[name] for name in names if name in listed}, len(absent)


def _places(path: Path, header: list[str], regex: str, optional: bool = False) -> list[int]:
    """Indices of the columns whose header matches."""
    places = [i for i, name in enumerate(header) if re.fullmatch(regex, name, re.IGNORECASE)]
    if not places and not optional:
        raise UserError(
            f"{path}: no column has a name like {regex!r}, only {', '.join(map(repr, header))}"
        )
    return places


def _check_counts(
    where: str, folder: Path, part: Part, rows: list[Row], absent: int, others: list[str]
) -> None:
    official = {"images": part.images, "writers": part.writers, "pages": part.pages}
    counted = {
        "images": len(rows) + absent,
        "writers": len({row.writer for row in rows} - {""}),
        "pages": len({row.page for row in rows}),
    }
    expected = {what: number for what, number in official.items() if number is not None}
    actual = {what: counted[what] for what in expected}
    if actual == expected:
        return
    expected_text, actual_text = (
        ", ".join(f"{number:,} {what}" for what, number in counts.items())
        for counts in (expected, actual)
    )
    named = ", ".join(map(repr, others[:_NAMED]))
    further = f" and {len(others):,} images of other names, such as {named}," if others else ""
    raise UserError(
        f"{where}: expected {expected_text}, found {actual_text}{further} in {folder}; {_ADVICE}"
    )


def _check_shared(where: str, expected: int, rows_of_splits: Mapping[str, list[Row]]) -> None:
    splits: dict[str, set[str]] = {}
    for split, rows in rows_of_splits.items():
        for row in rows:
            splits.setdefault(row.writer, set()).add(split)
    shared = sorted(writer for writer, at in splits.items() if writer and len(at) > 1)
    if len(shared) != expected:
        named = f", such as {', '.join(shared[:_NAMED])}" if shared else ""
        raise UserError(
            f"{where}: expected {expected:,} writers in more than one split, found "
            f"{len(shared):,}{named}; {_ADVICE}"
        )
