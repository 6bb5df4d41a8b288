"""The helpers of the benchmarks that test_benchmarks.py does not look at: memory, settling."""

import pytest

from benchmarks.measure import alternate, peak_memory


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


def test_a_side_settles_untimed():
    order = []
    times = alternate(2, 0, 1, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert "".join(order) == "aabb" + "bbaa"
    assert all(len(t.wall) == len(t.cpu) == 2 for t in times.values())
