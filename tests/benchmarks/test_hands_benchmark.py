"""The comparison of hands on a planted collection: selections, figures, table."""

import json
import sys

import numpy as np
import pytest
from planted import page, planted

from benchmarks import hands
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.retrieval.embeddings import load_embeddings

WRITERS, IMAGES = 12, 3


def table(kind, boxes):
    """Pages of two sets; three images a writer, two of them of one sheet in the set `a`."""
    pages = []
    for name in "ab":
        for w in range(WRITERS):
            for i in range(IMAGES):
                source = f"{name}{w}-{i}"
                sheet = f"{name}{w}-{min(i, 1)}" if name == "a" else source
                for box in boxes:
                    extra = {"set": name, "source": source, "sheet": sheet}
                    pages.append(page(f"{source}.png", f"{name}{w}", kind, box=box, extra=extra))
    return pages


@pytest.fixture
def folders(tmp_path):
    images = planted(tmp_path / "images", table("i", [None]), noise=0.3, dim=24)
    boxes = [(0, 0, 9, 9), (9, 9, 20, 20)]
    fragments = table("f", boxes)
    # A writer with one source is not asked for.
    extra = {"set": "b", "source": "lone", "sheet": "lone"}
    fragments += [page("lone.png", "lone", box=box, extra=extra) for box in boxes]
    planted(tmp_path / "fragments", fragments, noise=0.5, dim=24)
    return images.folder, tmp_path / "fragments"


def test_selections(folders):
    found = {s.name: s for s in hands.selections(*map(load_embeddings, folders))}
    assert list(found) == [
        "a images", "a images, one a sheet", "a fragments, one a source",
        "b images", "b fragments, one a source",
    ]  # fmt: skip
    assert [len(s.rows) for s in found.values()] == [1, 5, 5, 1, 5]
    for name, column in (
        ("a images, one a sheet", "sheet"),
        ("b fragments, one a source", "source"),
    ):
        selection = found[name]
        for rows in selection.rows:
            values = selection.pages.column(column)[rows].tolist()
            assert len(set(values)) == len(values)
            assert {selection.pages.column("set")[row] for row in rows} == {name[0]}
            assert "lone" not in values
        assert len(selection.rows[0]) == {"sheet": 2, "source": 3}[column] * WRITERS
        # Stored seeds draw different pages.
        assert not np.array_equal(selection.rows[0], selection.rows[1])
    again = {s.name: s for s in hands.selections(*map(load_embeddings, folders))}
    for name, selection in found.items():
        for a, b in zip(selection.rows, again[name].rows, strict=True):
            np.testing.assert_array_equal(a, b)


def test_from_folders_to_a_table(folders, tmp_path, monkeypatch, capsys):
    where = tmp_path / "hands.json"
    monkeypatch.setattr(hands, "SAMPLES", 200)
    monkeypatch.setattr(sys, "argv", ["hands", *map(str, folders), "--json", str(where)])
    hands.main()
    lines = capsys.readouterr().out.splitlines()
    results = json.loads(where.read_text())
    assert len(lines) == 2 + len(results) == 7
    by = {result["protocol"]: result for result in results}
    assert by["b images"]["methods"]["average"]["bcubed_f"] == pytest.approx(1, abs=0.03)
    for result in results:
        f = {name: figures["bcubed_f"] for name, figures in result["methods"].items()}
        assert result["minus_first_neighbours"][0] == pytest.approx(
            f["average"] - f["first_neighbours"]
        )
        base = f["first_neighbours"]
        expected = max(f["linked"], base + (0.03 if base <= 0.9 else (1 - base) / 4))
        assert result["bar"] == pytest.approx(expected)
        assert result["met"] == (
            f["average"] >= expected and result["minus_first_neighbours"][1] > 0
        )


def test_few_writers(folders, tmp_path, monkeypatch, capsys):
    where = tmp_path / "few.json"
    monkeypatch.setattr(hands, "SAMPLES", 50)
    monkeypatch.setattr(sys, "argv", ["hands", *map(str, folders), "--few", "--json", str(where)])
    hands.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
    results = {result["protocol"]: result for result in json.loads(where.read_text())}
    for count in hands.FEW:
        for name in "ab":
            figures = results[f"{name} fragments of {count} writers"]["methods"]["average"]
            assert figures["writers"] == count
    # All their fragments, which are two a source.
    assert results["a fragments of 3 writers"]["pages"] == 3 * IMAGES * 2


def test_a_set_without_fragments_is_said(folders, tmp_path):
    lone = planted(tmp_path / "lone", [page("x.png", "w", extra={"set": "a", "source": "x"})])
    with pytest.raises(UserError, match="has no fragments of a of writers with two sources"):
        list(hands.selections(load_embeddings(folders[0]), lone))
