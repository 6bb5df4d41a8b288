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


def test_a_field_has_the_comment_of_where_it_is_made():
    texts = {stage: fields.explained(stage) for stage in ("search", "retrieve", "embed")}
    # Of the same name in another stage; changed by a stage; of a section that two names have.
    assert texts["search"]["whitening"][1].startswith("A whitening.npz that `retrieve` wrote")
    assert texts["retrieve"]["whitening.dim"][1].startswith("Components kept")
    assert texts["search"]["report.thumbnail"] == texts["retrieve"]["report.thumbnail"]
    assert texts["embed"]["store.binarization"][1] == "`isauvola`, `sauvola`, `su`, `otsu`."
    for backend in ("sam", "sam_onnx"):
        assert texts["embed"][f"regions.{backend}.max_masks"][1].startswith("Of the masks found")


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name
