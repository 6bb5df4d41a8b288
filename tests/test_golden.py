"""tests/golden/COVERAGE.md is complete and true for what is stored."""

import re
from pathlib import Path

import numpy as np
import pytest
from golden_rows import GOLDEN, expand, read_rows, row_of
from places import TESTS

ROWS = read_rows()
NPZ = sorted(path.name for path in GOLDEN.glob("*.npz"))


@pytest.mark.parametrize("name", NPZ)
def test_every_stored_array_has_a_row_and_none_that_is_left_out(name):
    with np.load(GOLDEN / name) as file:
        keys = list(file.keys())
    for key in keys:
        assert row_of(ROWS, name, key), f"{name} {key} has no row in COVERAGE.md"
        gone = [row for row in ROWS if row.left_out and row.holds(name, key)]
        assert not gone, f"{name} {key} is stored, but COVERAGE.md says {gone[0].text!r}"


def test_every_other_file_has_a_row():
    named = {name for row in ROWS for name in expand(row.file)}
    stored = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*")
              if path.suffix in (".npz", ".json", ".png")}  # fmt: skip
    assert named == stored


def test_every_row_has_stored_arrays_and_tests_that_read_the_file():
    tests = TESTS
    for row in ROWS:
        if row.left_out:
            continue
        if row.patterns:
            with np.load(GOLDEN / row.file) as file:
                keys = list(file.keys())
            for pattern in row.patterns:
                only = row._replace(patterns=(pattern,))
                assert any(only.holds(row.file, k) for k in keys), f"{row.file} {pattern}"
        named = re.findall(r"\btest_\w+", row.text)
        assert named, row
        for module in named:
            (path,) = tests.rglob(f"{module}.py")
            text = path.read_text()
            file = Path(expand(row.file)[0])
            mentions = file.parent.name if file.parent.name else file.stem
            assert mentions in text, f"{module} does not read {row.file}"


def test_the_table_of_differences_names_every_group():
    """The values are measured on request (`--golden-errors`); here: that none is without a row."""
    text = (GOLDEN.parents[1] / "docs" / "fidelity.md").read_text()
    groups = [f"| {row.file} | {row.keys} |" for row in ROWS if row.patterns and not row.left_out]
    rows = [line for line in text.splitlines() if re.match(r"\| \w+\.npz ", line)]
    assert len(rows) == len(groups) > 30
    for group, row in zip(groups, rows, strict=True):
        assert row.startswith(group)
        read, absolute, relative = (cell.strip() for cell in row[len(group) :].split("|")[:3])
        assert re.fullmatch(r"([1-9]\d*) of \1", read), row
        for off in (absolute, relative):
            assert off == "inputs only" or float(off) >= 0
    for row in ROWS:
        assert row.patterns or row.file in text, row.file
