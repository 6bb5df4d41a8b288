"""What the documents name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_quirk_has_a_row_and_its_tests_exist():
    rows = re.findall(r"^\| (Q\d+) \|(.*)\|$", (ROOT / "docs" / "quirks.md").read_text(), re.M)
    assert [name for name, _ in rows] == [f"Q{i}" for i in range(1, 32)]
    for name, row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, name
        for test in re.findall(r"`(test_\w+\.py)`", cells[-1]):
            assert (ROOT / "tests" / test).exists(), (name, test)


@pytest.mark.parametrize("text", ["README.md", "docs/quirks.md"])
def test_links_lead_somewhere(text):
    path = ROOT / text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
