"""Benchmarks: each has a name, its figures say whether they hold, the table is made of them."""

import json

import pytest

from benchmarks import catalogue, tables
from benchmarks.measure import Report, Times, alternate, rates

# Two read sets of real pages, which only their owner has; their figures are in docs/.
APART = ("run", "quality", "few_patches", "scales", "hands")
SCRIPTS = {
    path.stem
    for path in tables.FOLDER.glob("*.py")
    if "__main__" in path.read_text() and path.stem not in APART
}


def test_every_script_has_a_name_and_every_name_a_script():
    assert {
        command.split()[0].removeprefix("benchmarks.") for command in catalogue.BENCHMARKS.values()
    } == SCRIPTS
    assert set(catalogue.NEEDS_TORCH) <= set(catalogue.BENCHMARKS)


def test_those_that_need_torch_are_marked():
    for name, command in catalogue.BENCHMARKS.items():
        script = tables.FOLDER / f"{command.split()[0].removeprefix('benchmarks.')}.py"
        assert ("import torch\n" in script.read_text()) == (name in catalogue.NEEDS_TORCH), name


def test_the_table_is_made_from_the_figures():
    assert tables.README.read_text() == tables.render()


def test_kept_figures_are_those_of_known_commands():
    commands = set(catalogue.BENCHMARKS.values())
    for path in tables.RESULTS.glob("*.json"):
        command = json.loads(path.read_text())["command"]
        assert command.removeprefix("python -m ") in commands, path.name


def test_sides_run_in_turn_and_ratios_are_those_of_a_round(capsys, tmp_path):
    order = []
    times = alternate(3, warmup=1, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert len(times["a"].wall) == len(times["b"].cpu) == 3
    slow, fast = Times([4.0, 9.0, 6.0], [8.0, 8.0, 8.0]), Times([2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
    report = Report("x")
    assert report.ratio("slow / fast", slow, fast, ">= 1.9") == 2.0
    assert report.ratio("slow / fast, CPU", slow, fast, "< 3", by="cpu") == 4.0
    assert rates(fast, 12) == [6.0, 4.0, 3.0]
    assert rates(fast, 12, by="cpu") == [12.0, 6.0, 3.0]
    out = capsys.readouterr().out
    assert "slow / fast: 2 times (1.5 to 3, 3 rounds); wanted >= 1.9: holds" in out
    assert "slow / fast, CPU: 4 times (2 to 8, 3 rounds); wanted < 3: MISSED" in out
    content = json.loads(report.write(tmp_path).read_text())
    assert [figure["holds"] for figure in content["figures"]] == [True, False]
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["python"]


@pytest.mark.parametrize("held", [True, False])
def test_rows_say_what_was_wanted_and_whether_it_holds(held, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    report = Report("speed")
    report.add("big", [12345.6, 23456.7, 10000.0], "patches/s", ">= 12000" if held else ">= 13000")
    report.write(tmp_path)
    text = tables.render()
    says = ">= 12000: holds" if held else ">= 13000: **missed**"
    assert f"| big | 12,346 | patches/s | 10,000 to 23,457 (3) | {says} |" in text
    assert "## speed" in text
