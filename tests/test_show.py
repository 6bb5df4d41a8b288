"""The stage show, and what the training stages leave for people to look at."""

import json
import re

import pytest
from tensorboardX.proto import event_pb2
from test_configs import parse_command
from toy import toy

from saghog_jax.configs import finetune, pretrain, show
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.runs.profiler import Profiler
from saghog_jax.stages import run_stage

TINY = Corpus(train_writers=4, test_writers=1, pages=2, width=360, height=200, lines=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages, and a pretrained and finetuned model of them."""
    folder = tmp_path_factory.mktemp("show")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    run_stage(toy(pretrain.get_config(), folder, profile="2,3"), folder / "pretrain")
    run_stage(toy(finetune.get_config(), folder, tensorboard=False), folder / "finetune")
    return folder


def shown(folder, **changes):
    config = show.get_config()
    config.update(changes)
    config.checkpoint = str(folder)
    run_stage(config, folder)
    return (folder / "report.html").read_text()


def test_a_run_ends_with_a_report_and_its_pictures(folder):
    text = (folder / "pretrain" / "report.html").read_text()
    assert "Step 4 of 4; 128 patches seen" in text
    assert "<h2>Reconstruction</h2>" in text
    assert "saw 25% of the tokens" in text
    text = (folder / "finetune" / "report.html").read_text()
    assert "<h2>Classes</h2>" in text
    assert "(pseudo labels)" in text


def test_show_draws_what_the_stage_drew(folder):
    before = (folder / "pretrain" / "report.html").read_text()
    assert shown(folder / "pretrain") == before
    fewer = shown(folder / "pretrain", rows=2)
    assert len(fewer) < len(before)
    assert "data:image" not in shown(folder / "pretrain", pictures="none")
    assert "<h2>Classes</h2>" in shown(folder / "finetune", pictures="classes", rows=3)


def test_the_wrong_kind_of_checkpoint_says_so(folder):
    with pytest.raises(UserError, match="is of kind 'writer', but this needs 'mae', which `python"):
        shown(folder / "finetune", pictures="reconstruction")
    with pytest.raises(UserError, match="is of kind 'mae', but this needs 'writer', which"):
        shown(folder / "pretrain", pictures="classes")
    with pytest.raises(UserError, match="unknown config.pictures 'x', known: auto, reconstruction"):
        shown(folder / "pretrain", pictures="x")
    with pytest.raises(UserError, match="unknown checkpoint 'first', known: last, best"):
        shown(folder / "pretrain", which="first")


def test_crops_of_pages_are_shown_too(folder, tmp_path):
    config = toy(pretrain.get_config("source=crops"), folder, **{"loader.workers": 1})
    run_stage(config, tmp_path / "crops")
    assert "<h2>Reconstruction</h2>" in (tmp_path / "crops" / "report.html").read_text()


def events(folder):
    """(step, name, value) of the TensorBoard events in a folder, in their order."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_tensorboard_has_the_numbers_of_metrics_jsonl(folder):
    found = list(events(folder / "pretrain" / "tensorboard"))
    lines = (folder / "pretrain" / "metrics.jsonl").read_text().splitlines()
    expected = [
        (record["step"], name, pytest.approx(value, rel=1e-6))
        for record in map(json.loads, lines)
        for name, value in record.items()
        if name != "step"
    ]
    assert sorted(found) == sorted(expected, key=lambda row: row[:2])
    assert {"loss", "grad_norm", "learning_rate", "patches_per_second", "data_wait_share",
            "memory_gib"} == {name for _, name, _ in found}  # fmt: skip
    assert not (folder / "finetune" / "tensorboard").exists()


def test_a_profile_is_written_of_the_steps_asked_for(folder):
    assert list((folder / "pretrain" / "profile").rglob("*.xplane.pb"))
    assert list((folder / "pretrain" / "profile").rglob("perfetto_trace.json.gz"))
    assert not (folder / "finetune" / "profile").exists()


@pytest.mark.parametrize(
    ("span", "message"),
    [("10", "must be FIRST,LAST"), ("a,b", "must be FIRST,LAST"), ("0,3", "counted from 1"),
     ("5,4", "FIRST must not exceed LAST")],
)  # fmt: skip
def test_spans_that_cannot_be_traced(span, message, tmp_path):
    with pytest.raises(UserError, match=f"config.profile='{span}'.*{message}"):
        Profiler(span, tmp_path)


def test_only_the_steps_of_the_span_are_traced(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    profiler = Profiler("3,4", tmp_path)
    for step in range(1, 7):
        profiler.before(step)
        calls.append(step)
        profiler.after(step, ())
    assert calls == [1, 2, "start", 3, 4, "stop", 5, 6]
    assert str(tmp_path / "profile") in capsys.readouterr().out
    profiler.before(3)
    profiler.close()
    assert calls[-2:] == ["start", "stop"]


def test_weights_and_biases(tmp_path, monkeypatch, folder):
    wandb = pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    changes = {"wandb.project": "tests", "data.pages": str(folder / "pages" / "manifest.csv")}
    config = toy(pretrain.get_config(), tmp_path, **changes)
    run_stage(config, tmp_path / "run")
    assert wandb.run is None
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_without_weights_and_biases_the_message_says_how_to_get_it(monkeypatch, folder, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    config = toy(pretrain.get_config(), folder, **{"wandb.project": "tests"})
    with pytest.raises(UserError, match=re.escape("pip install -e '.[wandb]'")):
        run_stage(config, tmp_path / "run")
    config.wandb.mode = "sometimes"
    with pytest.raises(UserError, match="config.wandb.mode 'sometimes', known: offline, online"):
        run_stage(config, tmp_path / "run")


def test_the_command_in_a_report_without_pictures_is_understood():
    from saghog_jax.runs.report import NO_PICTURES

    words = NO_PICTURES.partition("saghog_jax.main ")[2].split()
    assert parse_command(words).checkpoint == "THIS_FOLDER"
