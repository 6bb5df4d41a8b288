"""The unpacked folders of a public collection to rows of a manifest, checked against its counts."""

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
_ADVICE = "unpack the archive again, or give check_counts=false to take what is there"


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
      manual_dir: where the archives were unpacked, itself or in its subfolder of the collection's
        name.
      split: only this one; all where empty.
      check_counts: whether everything must be there that was published. Otherwise what is there
        is taken, and whole splits may be missing.

    Raises:
      UserError: an unknown split; a folder or table that is missing (says what to download) or
        damaged; the same page twice; other counts than the official ones.
    """
    where = collection.full_name(variant)
    known = collection.splits(variant)
    if split and split not in known:
        raise UserError(f"{where} has no split {split!r}, known: {', '.join(known)}")
    parts = [part for part in collection.variants[variant] if split in ("", part.split)]
    found: dict[str, list[Row]] = {}
    for part in parts:
        rows = _part_rows(collection, variant, part, manual_dir, check_counts)
        if rows:
            found[part.split] = rows
    if not found:
        raise _missing(collection, variant, manual_dir, [name for p in parts for name in p.folders])
    if check_counts and not split and collection.shared_writers is not None:
        _check_shared(where, collection.shared_writers, found)
    return [row for rows in found.values() for row in rows]


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
    excused = 0
    if part.table:
        path = _find_table(part.table, folder, root)
        if path is None:
            raise _missing(collection, variant, root, part.table.names)
        labels, excused = _read_labels(path, part.table, names, check_counts)
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
        _check_counts(where, folder, part, rows, excused, strange)
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
    """The first folder with images that fit; their names, and those of its other images.

    The collection's own folder `name` comes first. A folder is also looked for one level deeper,
    and within itself: some programs unpack an archive into a folder of the archive's name.
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
                f"{where}: {folder} holds one page twice, as {twin!r} and as {name!r}; keep one"
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
    """Cells of each image that is listed and there; and how many others are excused."""
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
    excused = (table.absent & listed.keys()).difference(names)
    missing = sorted(listed.keys() - names - excused)
    if missing and check_counts:
        raise UserError(
            f"{path} lists {len(missing):,} images that are not there, such as "
            f"{', '.join(map(repr, missing[:_NAMED]))}; {_ADVICE}"
        )
    return {name: listed[name] for name in names if name in listed}, len(excused)


def _places(path: Path, header: list[str], regex: str, optional: bool = False) -> list[int]:
    """Columns of this name."""
    found = [i for i, name in enumerate(header) if re.fullmatch(regex, name, re.IGNORECASE)]
    if not found and not optional:
        raise UserError(
            f"{path}: no column has a name like {regex!r}, only {', '.join(map(repr, header))}"
        )
    return found


def _check_counts(
    where: str, folder: Path, part: Part, rows: list[Row], excused: int, others: list[str]
) -> None:
    official = {"images": part.images, "writers": part.writers, "pages": part.pages}
    counted = {
        "images": len(rows) + excused,
        "writers": len({row.writer for row in rows} - {""}),
        "pages": len({row.page for row in rows}),
    }
    expected = {what: number for what, number in official.items() if number is not None}
    found = {what: counted[what] for what in expected}
    if found == expected:
        return
    wanted, got = (
        ", ".join(f"{number:,} {what}" for what, number in counts.items())
        for counts in (expected, found)
    )
    named = ", ".join(map(repr, others[:_NAMED]))
    further = f" and {len(others):,} images of other names, such as {named}," if others else ""
    raise UserError(f"{where}: expected {wanted}, found {got}{further} in {folder}; {_ADVICE}")


def _check_shared(where: str, expected: int, found: Mapping[str, list[Row]]) -> None:
    splits: dict[str, set[str]] = {}
    for split, rows in found.items():
        for row in rows:
            splits.setdefault(row.writer, set()).add(split)
    shared = sorted(writer for writer, at in splits.items() if writer and len(at) > 1)
    if len(shared) != expected:
        named = f", such as {', '.join(shared[:_NAMED])}" if shared else ""
        raise UserError(
            f"{where}: expected {expected:,} writers in more than one split, found "
            f"{len(shared):,}{named}; {_ADVICE}"
        )
