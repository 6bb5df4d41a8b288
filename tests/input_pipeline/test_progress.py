"""Progress is reported every ten seconds, with the time that is left."""

import pytest

from saghog_jax.input_pipeline import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (9000, "2h30m")],
)
def test_durations_are_short(seconds, text):
    assert progress.duration(seconds) == text


def test_a_report_is_due_every_ten_seconds(monkeypatch):
    now = iter([0.0, 4.0, 12.0, 20.0, 30.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    timer = progress.ProgressTimer(10)
    reports = [timer.due(done) for done in (1, 4, 5, 6)]
    assert reports == [None, (12.0, 18.0), None, (30.0, 20.0)]
    # The end is reported by another line.
    assert timer.due(10) is None
