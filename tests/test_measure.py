"""The helpers of the benchmarks."""

import json

import pytest

from benchmarks.measure import Report, Times, alternate, peak_memory


def _allocates(mib):
    return lambda: bytes(bytearray(2**20) * mib)


def _fails():
    raise SystemExit(3)


def test_peak_memory_is_that_of_the_call_alone():
    small, large = (peak_memory(_allocates, mib).growth for mib in (1, 300))
    # The copy doubles what is held for a moment.
    assert 300 <= large - small <= 700
    with pytest.raises(RuntimeError, match="for _fails failed"):
        peak_memory(_fails)


def test_sides_alternate():
    order = []
    times = alternate(3, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    order.clear()
    times = alternate(2, 0, 1, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert "".join(order) == "aabb" + "bbaa"
    assert all(len(t.wall) == 2 for t in times.values())


def test_sides_are_timed_once_a_round():
    times = alternate(3, a=lambda: None, b=lambda: None)
    assert all(len(t.wall) == len(t.cpu) == 3 for t in times.values())


def test_a_report_holds_what_was_measured(tmp_path, capsys):
    report = Report("example")
    old, new = Times([4.0, 6.0, 9.0], [1.0] * 3), Times([2.0, 2.0, 2.0], [1.0] * 3)
    assert report.ratio("speed", old, new, target=">= 4") == 3.0
    report.add("share", 0.2, "%", target="< 0.3")
    content = json.loads(report.write(tmp_path).read_text())
    first, second = content["figures"]
    assert (first["median"], first["low"], first["high"], first["rounds"]) == (3.0, 2.0, 4.5, 3)
    assert (first["holds"], second["holds"]) == (False, True)
    assert content["machine"]["cores"] >= 1
    assert "speed: 3 times (2 to 4.5, 3 rounds); wanted >= 4: MISSED" in capsys.readouterr().out
