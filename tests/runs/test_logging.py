"""Progress lines and metrics.jsonl."""

import json

import pytest

from saghog_jax.input_pipeline.console import show_messages
from saghog_jax.input_pipeline.errors import RunError
from saghog_jax.runs import metrics_log


def test_rates_shares_and_eta(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics_log, "memory_gib", lambda: 1.25)
    log = metrics_log.MetricsLog(tmp_path, start_step=0, total_steps=100, global_batch_size=64)
    log.waited_for_data(1.0)
    now[0] += 4.0
    log.write(20, {"loss": 0.5, "grad_norm": 3.0})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    # 20 steps of 64 patches in 4 seconds, one of them waiting; 80 steps are left.
    assert record == {
        "step": 20, "loss": 0.5, "grad_norm": 3.0, "patches_per_second": 320.0,
        "data_wait_share": 0.25, "memory_gib": 1.25,
    }  # fmt: skip
    assert capsys.readouterr().out == ("step  20/100  loss 0.5  about 16s left\n")
    # What lies between is not counted.
    now[0] += 1000.0
    log.restart_clock(20)
    now[0] += 2.0
    log.write(30, {"loss": 0.4})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])[
        "patches_per_second"
    ] == 320.0  # fmt: skip


def test_all_numbers_are_shown_on_demand(tmp_path, monkeypatch, capsys):
    """With --verbosity=1, beside the plain line."""
    show_messages(details=True)
    monkeypatch.setattr(metrics_log, "memory_gib", lambda: 1.25)
    log = metrics_log.MetricsLog(tmp_path, start_step=0, total_steps=20, global_batch_size=64)
    log.write(20, {"loss": 0.5, "grad_norm": 3.0})
    plain, full = capsys.readouterr().out.splitlines()
    assert plain == "step 20/20  loss 0.5"
    assert full.startswith("step 20/20  loss 0.5  grad_norm 3  ")
    assert full.endswith(" patches/s  data wait 0%  memory 1.2 GiB")
    show_messages()
    log.write_evaluation(20, {"validation_map": 0.25, "best_step": 20})
    assert capsys.readouterr().out == "step 20/20  mAP of held-out pages 0.25\n"


def test_lines_of_steps_that_happen_again_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    metrics_log.MetricsLog(tmp_path, start_step=4, total_steps=10, global_batch_size=1)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_a_full_disk_below_a_sink_is_one_line(tmp_path):
    class Full:
        def add(self, step, values):
            raise OSError(28, "No space left on device")

    log = metrics_log.MetricsLog(tmp_path, 0, 10, 1, sinks=[Full()])
    with pytest.raises(RunError, match=f"{tmp_path} could not be written: No space left on device"):
        log.write(1, {"loss": 0.5})


def test_a_run_that_goes_on_makes_tensorboard_forget_later_steps(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    from saghog_jax.configs import pretrain
    from saghog_jax.runs.trackers import open_sinks

    for start in (0, 4):
        (sink,) = open_sinks(pretrain.get_config(), tmp_path, start)
        sink.add(start + 1, {"loss": 0.5})
        sink.close()
    # Started again within the same second, too.
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.suffix)
    events = []
    for path in (first, second):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                events.append(("forget", event.step))
            events += [(value.tag, event.step) for value in event.summary.value]
    assert events == [("loss", 1), ("forget", 5), ("loss", 5)]
