"""The table of tests/golden/COVERAGE.md, and `--golden-errors`, which measures its rows.

    python -m pytest -n 0 --golden-errors tests

With the option, arrays loaded from tests/golden know where they came from; comparisons by
`np.testing` record how far they were off, and the summary says, for each row of the table, how many
of its arrays were read and the largest difference, absolute and as a share of the largest element.
"""

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from places import TESTS

GOLDEN = TESTS / "golden"


class Row(NamedTuple):
    """A row of the table: arrays of one file."""

    file: str
    patterns: tuple[str, ...]
    text: str
    keys: str

    @property
    def left_out(self) -> bool:
        return self.text.startswith("left out")

    def holds(self, file: str, key: str) -> bool:
        files = (fnmatch.fnmatchcase(file, name) for name in expand(self.file))
        keys = (fnmatch.fnmatchcase(key, p) for p in self.patterns)
        return any(files) and (not self.patterns or any(keys))


def expand(pattern: str) -> list[str]:
    """`{a,b}_{c,d}` -> a_c, a_d, b_c, b_d."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    # Outside of braces a comma would stand for itself; there is none.
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def read_rows() -> list[Row]:
    """All rows of the table."""
    rows = []
    for line in (GOLDEN / "COVERAGE.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "file":
            patterns = [p for quoted in re.findall(r"`([^`]+)`", cells[1]) for p in expand(quoted)]
            rows.append(Row(cells[0], tuple(patterns), cells[2], cells[1]))
    return rows


def row_of(rows: list[Row], file: str, key: str) -> Row | None:
    """The row of a stored array, not one of those that are left out."""
    return next((r for r in rows if not r.left_out and r.holds(file, key)), None)


class Golden(np.ndarray):
    """An array that knows its file and key, as do its parts and what is computed from it."""

    origin: tuple[str, str] | None = None

    def __array_finalize__(self, obj: object) -> None:
        self.origin = getattr(obj, "origin", None)


class GoldenFile(Mapping):
    """What `np.load` of a file of tests/golden gives with `--golden-errors`."""

    def __init__(self, file: np.lib.npyio.NpzFile, name: str, record: "Record") -> None:
        self._file, self._name, self._record = file, name, record
        self.files = file.files

    def __getitem__(self, key: str) -> Golden:
        self._record.read.add((self._name, key))
        array = self._file[key].view(Golden)
        array.origin = (self._name, key)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __enter__(self) -> "GoldenFile":
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()


class Record:
    """What was read and how far it was off; a pytest plugin."""

    def __init__(self) -> None:
        self.read: set[tuple[str, str]] = set()
        self.errors: dict[tuple[str, str], tuple[float, float]] = {}
        load = np.load

        def tracked(path: object, *rest: object, **options: object) -> object:
            loaded = load(path, *rest, **options)
            inside = isinstance(path, Path) and path.resolve().parent == GOLDEN
            return GoldenFile(loaded, path.name, self) if inside else loaded

        np.load = tracked
        for name in ("assert_allclose", "assert_array_equal"):
            setattr(np.testing, name, self._watching(getattr(np.testing, name)))

    def _watching(self, check: object) -> object:
        def watched(actual: object, desired: object, *rest: object, **options: object) -> None:
            origin = getattr(desired, "origin", None) or getattr(actual, "origin", None)
            check(*(plain(x) for x in (actual, desired)), *rest, **options)
            if origin and np.asarray(desired).dtype.kind not in "US":
                self._note(origin, *(np.asarray(x, np.float64) for x in (actual, desired)))

        return watched

    def _note(self, origin: tuple[str, str], actual: np.ndarray, desired: np.ndarray) -> None:
        error = np.abs(actual - desired).max(initial=0.0)
        scale = np.abs(desired).max(initial=0.0)
        found = float(error), float(error / scale) if scale else float(error)
        kept = self.errors.get(origin, (0.0, 0.0))
        self.errors[origin] = tuple(max(pair) for pair in zip(kept, found, strict=True))

    def pytest_terminal_summary(self, terminalreporter: object) -> None:
        write = terminalreporter.write_line
        rows = read_rows()
        stored = {(path.name, key) for path in sorted(GOLDEN.glob("*.npz"))
                  for key in np.lib.npyio.NpzFile(path.open("rb"), own_fid=True).files}  # fmt: skip
        write("| file | keys | read | largest difference | of the largest element |")
        write("|---|---|---|---|---|")
        for row in rows:
            keys = sorted(k for k in stored if row_of(rows, *k) is row)
            if keys:
                off = [self.errors[key] for key in keys if key in self.errors]
                worst = [f"{max(column):.1e}" for column in zip(*off)] or ["inputs only"] * 2
                read = f"{len(self.read & set(keys))} of {len(keys)}"
                write(f"| {row.file} | {row.keys} | {read} | {worst[0]} | {worst[1]} |")
        for file, key in sorted(stored - self.read):
            write(f"never read: {file} {key}")


def plain(x: object) -> object:
    """The array itself, without its origin."""
    return x.view(np.ndarray) if isinstance(x, Golden) else x
