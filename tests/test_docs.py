"""What the documents name exists."""

import re
from pathlib import Path

import pytest

from configs import fields

ROOT = Path(__file__).parents[1]


TEXTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("text", TEXTS)
def test_links_lead_somewhere(text):
    path = ROOT / text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_page_of_fields_is_made_from_the_configs():
    assert fields.PAGE.read_text() == fields.render()


@pytest.mark.parametrize("stage", fields.stages())
def test_every_field_of_a_stage_is_explained(stage):
    explained = fields.explained(stage)
    assert explained
    assert [name for name, (_, text) in explained.items() if not text] == []


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name
