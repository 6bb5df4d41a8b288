"""What the documents name exists, and what they show runs."""

import ast
import csv
import re
import shlex
from pathlib import Path

import make_config_page
import pytest
from collection_fakes import FAKES, fake
from places import ROOT

from benchmarks.catalogue import BENCHMARKS

TEXTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("text", TEXTS)
def test_links_lead_somewhere(text):
    path = ROOT / text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_page_of_fields_is_made_from_the_configs():
    assert make_config_page.PAGE.read_text() == make_config_page.render()


@pytest.mark.parametrize("stage", make_config_page.stages())
def test_every_field_of_a_stage_is_explained(stage):
    explained = make_config_page.explained(stage)
    assert explained
    assert [name for name, (_, text) in explained.items() if not text] == []


def test_a_field_has_the_comment_of_where_it_is_made():
    texts = {stage: make_config_page.explained(stage) for stage in ("search", "retrieve", "embed")}
    # Of the same name in another stage; changed by a stage; of the section of a backend.
    assert texts["search"]["whitening"][1].startswith("A whitening.npz of `retrieve`")
    assert texts["retrieve"]["whitening.dim"][1].startswith("Components kept")
    assert texts["search"]["report.thumbnail"] == texts["retrieve"]["report.thumbnail"]
    assert texts["embed"]["store.binarization"][1] == "`isauvola`, `sauvola`, `su`, `otsu`."
    assert texts["embed"]["regions.sam.max_masks"][1].startswith("Masks with the highest predicted")
    assert texts["embed"]["regions.xml.level"] == ("region", texts["embed"]["regions.xml.level"][1])


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


@pytest.mark.parametrize("text", TEXTS)
def test_other_commands_name_what_is_there(text):
    """Those of stages are parsed by test_configs.py."""
    for block in code_blocks(ROOT / text, "bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            first, *words = shlex.split(line, comments=True) or [""]
            if first == "bash":
                assert (ROOT / words[0]).is_file(), line
            elif first == "python" and words[0] == "-m":
                module, *given = words[1:]
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file() or module == "pytest", (
                    line
                )
                if module == "benchmarks.run":
                    assert set(given) <= {*BENCHMARKS, "all"}, line
            elif first not in ("", "cd", "git", "source", ".venv\\Scripts\\activate"):
                assert (ROOT / first).is_file(), line


@pytest.mark.parametrize("text", TEXTS)
def test_places_in_the_code_are_there(text):
    """`file.py: name` is a function, class or constant of that file."""
    for file, name in re.findall(r"`([\w/]+\.py): (\w+)`", (ROOT / text).read_text()):
        tree = ast.parse((ROOT / file).read_text())
        names = {getattr(node, "name", "") for node in ast.walk(tree)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert name in names, f"{file}: {name}"


def test_pictures_are_small_and_shown():
    pictures = sorted((ROOT / "docs" / "pictures").glob("*"))
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes, default=0) < 150_000
    assert sum(sizes) < 1_000_000
    text = "".join((ROOT / text).read_text() for text in TEXTS)
    assert [path.name for path in pictures if f"(pictures/{path.name})" not in text] == []


def test_the_table_of_pages_for_pretraining_is_made(tmp_path, monkeypatch):
    (script,) = code_blocks(ROOT / "docs" / "experiments.md", "python")
    names = re.search(r"for name in \((.*)\)", script)[1]
    wanted = [
        next(full for full in FAKES if full.startswith(name)) for name in ast.literal_eval(names)
    ]
    script = script.replace('f"tfds:{name}"', 'f"tfds:{name},check_counts=false"')
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name in wanted:
        fake(manual, name, empty=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "experiments.md", "exec"), {})
    with (tmp_path / "pretraining.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > len(wanted)
    assert all(Path(row["path"]).is_file() for row in rows)
