"""docs/quirks.md names options and tests that exist, or says why there is none."""

import ast
import re

import pytest
from places import TESTS
from toy import fields

from saghog_jax.configs import embed, finetune, pretrain, retrieve

LINES = (TESTS.parent / "docs" / "quirks.md").read_text().splitlines()
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in LINES if line.startswith("| Q")]
KNOWN = {}
for module in (pretrain, finetune, embed, retrieve):
    # Fields without a value are those of a recipe, which finetuning and the stores have too.
    KNOWN |= {k: v for k, v in fields(module.get_config()).items() if v is not None}


def test_all_are_there():
    assert [row[0] for row in ROWS] == [f"Q{i}" for i in range(1, 35)]
    assert all(len(row) == 5 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_options_and_tests_exist(row):
    _, _, default, published, tests = row
    assert published.startswith(("`", "default", "none: "))
    for option in re.findall(r"`([^`]+)`", f"{default} {published}"):
        field, value = option.split("=")
        known = KNOWN[field]
        # A choice is a word, anything else is of the type of the field.
        if not isinstance(known, str):
            found = ast.literal_eval(value)
            assert isinstance(found, type(known)), option
    named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
    assert len(named) == tests.count("`") // 2
    assert named or tests.startswith("none: ")
    for file, function in named:
        (path,) = TESTS.rglob(file)
        text = path.read_text()
        assert re.search(rf"def {function}\(", text), f"{file}::{function}"
