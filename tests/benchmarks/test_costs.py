"""The cost of a large collection is the measured rates times its pages."""

import json

from benchmarks import costs


def results(folder, **figures):
    for name, values in figures.items():
        content = {
            "machine": {"processor": "Z80", "instructions": ["avx2"]},
            "figures": [{"name": key, "median": value} for key, value in values.items()],
        }
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))


def test_rates_times_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    compact = {"exact, CPU": 3.6, "8-bit codes first, CPU": 1.8}
    compact["8-bit codes are written in, CPU"] = 36
    results(
        tmp_path,
        pages={"ours, processor time": 1.5},
        search_compact=compact,
        search_milvus={"inserted into Milvus, CPU": 72, "size of the database": 0.5},
    )
    text = costs.section(10_000_000)
    for row in (
        "| embed | 1.5 s a page | 4.17e+03 core hours |",
        "| write 8-bit codes | 36 s for 1,000,000 pages | 0.1 core hours |",
        "| insert into Milvus | 72 s for 200,000 pages | 1 core hours |",
        "| store descriptors | 2,048 bytes a page | 20 GB |",
        "| store 8-bit codes | 1,028 bytes a page | 10 GB |",
        "| store in Milvus | 2,684 bytes a page | 27 GB |",
        "| search 100 queries, exact | 3.6 s for 1,000,000 pages | 0.01 core hours |",
        "| search 100 queries, 8-bit codes first | 1.8 s for 1,000,000 pages | 0.005 core hours |",
    ):
        assert row in text
    assert "Z80, avx2" in text
    assert "| embed | 3 s a page | 8.33e+03 core hours |" in costs.section(10_000_000, 3)


def test_what_was_not_measured_is_left_open(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    text = costs.section()
    assert text.count("| not measured | not measured |") == 6
    assert "| store descriptors | 2,048 bytes a page | 205 GB |" in text


def test_the_page_has_the_section_of_the_kept_figures():
    assert costs.PAGE.read_text().endswith(costs.section())


def test_writing_replaces_the_section_alone(tmp_path, monkeypatch):
    page = tmp_path / "scaling.md"
    page.write_text("# Scaling\n\nA table.\n")
    monkeypatch.setattr(costs, "PAGE", page)
    for pages in (10, 20):
        costs.write(costs.section(pages))
        assert page.read_text() == f"# Scaling\n\nA table.\n\n{costs.section(pages)}"
