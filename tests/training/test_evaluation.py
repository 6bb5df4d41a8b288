"""What is held out, what is found on it, and what follows: the best checkpoint, early stopping."""

import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from regression import Regression, config
from store_helpers import make_store
from toy import toy

from saghog_jax import finetune, pretrain
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.devices import sharding
from saghog_jax.embedding import describers
from saghog_jax.embedding.describers import Checkpoint
from saghog_jax.input_pipeline.datasets.synthetic import Corpus, write_corpus
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.manifest import Page
from saghog_jax.runs.checkpoint import load_variables, read_meta
from saghog_jax.stages import run_stage
from saghog_jax.training import finetuning, pretraining
from saghog_jax.training import validation as evaluation
from saghog_jax.training.loop import Run

MESH = {"data": -1, "fsdp": 1}


def pages_of(writers, each=2):
    names = [f"{w}/{i}" for w in writers for i in range(each)]
    return [Page(name, name.split("/")[0].strip("?"), name, "", None, {}) for name in names]


def wanted(share, seed=0):
    return ConfigDict({"validation": {"share": share}, "seed": seed})


def test_whole_writers_are_drawn_and_the_draw_is_kept(tmp_path):
    pages = pages_of([f"w{i}" for i in range(10)])
    assert evaluation.plan(wanted(0.0), tmp_path, pages) == frozenset()
    assert not list(tmp_path.iterdir())
    first = evaluation.plan(wanted(0.3), tmp_path / "a", pages)
    assert len(first) == 6
    assert len({name.split("/")[0] for name in first}) == 3
    # The order of the pages does not matter, the seed does.
    assert evaluation.plan(wanted(0.3), tmp_path / "b", pages[::-1]) == first
    assert evaluation.plan(wanted(0.3, 1), tmp_path / "c", pages) != first
    stored = json.loads((tmp_path / "a" / "validation.json").read_text())
    assert stored["pages"] == sorted(first)
    assert len(stored["writers"]) == 3
    # What is stored counts, also when pages have come since.
    more = pages + pages_of(["x", "y", "z"])
    assert evaluation.plan(wanted(0.3, 1), tmp_path / "a", more) == first


def test_pages_without_a_writer_are_drawn_one_by_one(tmp_path):
    pages = pages_of(["?"], each=10)
    assert len(evaluation.plan(wanted(0.2), tmp_path, pages)) == 2


@pytest.mark.parametrize("writers", [["a", "b"], ["?"]])
def test_too_few_to_hold_some_out_is_said(tmp_path, writers):
    with pytest.raises(UserError, match="too few to hold some out"):
        evaluation.plan(wanted(0.9), tmp_path, pages_of(writers, each=1))


@pytest.mark.parametrize("data", [1, 8])
def test_figures_are_those_of_a_plain_loop(tmp_path, data):
    """Planted features: mAP and the mean error, whatever the padding and the devices."""
    store, arrays = make_store(tmp_path / "store", [5, 3, 7, 9, 4, 6])
    pages = store.manifest.pages
    ids = frozenset(page.page_id for page in pages[1:])
    held_out = evaluation.from_store(store, ids, 4)
    assert held_out.writers == tuple(page.writer for page in pages[1:])
    assert held_out.weight.sum() == 3 + 4 * 4

    def validate(variables, batch, segments, rng):
        x = batch["patches"].astype(jnp.float32).mean((1, 2)) * variables["scale"]
        return {"sums": segments @ x, "errors": x[:, 0]}

    devices = np.array(jax.devices()[:data]).reshape(data, 1)
    mesh = jax.sharding.Mesh(devices, sharding.AXES)
    found = evaluation.Evaluator(held_out, validate, mesh, 0)({"scale": jnp.ones(3)})
    x = arrays["patches"].astype(np.float64).mean((1, 2))
    ends = np.cumsum([5, 3, 7, 9, 4, 6])
    rows = [np.linspace(s, e - 1, min(e - s, 4)).astype(int) for s, e in pairwise(ends)]
    sums = np.stack([x[r].sum(0) for r in rows]) ** 0.4
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    scores, ap, top = sums @ sums.T, [], []
    for i, writer in enumerate(held_out.writers):
        order = [j for j in np.argsort(-scores[i]) if j != i]
        hits = [bool(writer) and held_out.writers[j] == writer for j in order]
        if any(hits):
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            ap.append(precision[hits].mean())
            top.append(hits[0])
    assert len(ap) == held_out.queries > 0
    assert found["validation_map"] == pytest.approx(np.mean(ap))
    assert found["validation_top1"] == pytest.approx(np.mean(top))
    errors = np.concatenate([x[r, 0] for r in rows])
    assert found["validation_loss"] == pytest.approx(errors.mean(), rel=1e-5)


class Scored(Regression):
    """The small problem with pages held out, for figures that a test gives."""

    held_out = evaluation.HeldOut(
        np.zeros((2, 4, 8), np.uint8), np.zeros((2, 4), np.uint8), np.ones((2, 4)), ("", "")
    )
    validate = None


def fit_scored(folder, scores, monkeypatch, patience=0, **changes):
    c = config(total_steps=12, checkpoint_every=4, keep_checkpoints=1, **changes)
    c.validation.update({"share": 0.5, "every": 2, "monitor": "loss", "patience": patience})
    values = iter(scores)
    monkeypatch.setattr(
        evaluation.Evaluator, "__call__", lambda *_: {"validation_loss": next(values)}
    )
    run = Run(c, folder, "mae")
    if not run.finished:
        run.fit(Scored(c))
    return run


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_the_best_checkpoint_stays_and_can_be_chosen(tmp_path, monkeypatch):
    fit_scored(tmp_path, [5, 3, 4, 4, 4, 6], monkeypatch)
    assert steps(tmp_path) == [4, 12]
    assert load_variables(tmp_path, ("mae",), "best")[1]["step"] == 4
    assert load_variables(tmp_path, ("mae",))[1]["step"] == 12
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["validation_loss"], line["best_step"])
             for line in lines if "validation_loss" in line]  # fmt: skip
    assert found == [(2, 5, 2), (4, 3, 4), (6, 4, 4), (8, 4, 4), (10, 4, 4), (12, 6, 4)]
    with pytest.raises(UserError, match="unknown checkpoint 'first', known: last, best"):
        load_variables(tmp_path, ("mae",), "first")


def test_every_nth_checkpoint_stays(tmp_path, monkeypatch):
    fit_scored(tmp_path, [5, 5, 5, 5, 5, 5], monkeypatch, keep_every=8)
    assert steps(tmp_path) == [2, 8, 12]


def test_stops_early_and_knows_it(tmp_path, monkeypatch, capsys):
    fit_scored(tmp_path, [5, 3, 4, 3], monkeypatch, patience=2)
    assert "stopped early, best was step 4" in capsys.readouterr().out
    assert steps(tmp_path) == [4, 8]
    assert fit_scored(tmp_path, [], monkeypatch, patience=2).finished
    assert read_meta(tmp_path, 8)["progress"]["finished"]


def test_patience_is_remembered_over_a_restart(tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    with monkeypatch.context() as patch:
        fetch = Regression.batches
        patch.setattr(Regression, "batches", lambda t, s: Limited(fetch(t, s), 9, StopError))
        with pytest.raises(StopError):
            fit_scored(tmp_path, [5, 3, 4, 4], monkeypatch, patience=3)
    # Going on from 8 after two evaluations without a new best; the next one is the third.
    fit_scored(tmp_path, [4], monkeypatch, patience=3)
    assert steps(tmp_path) == [4, 10]


class Limited:
    def __init__(self, batches, step, error):
        self.batches, self.step, self.error = batches, step, error

    def __next__(self):
        if self.batches.step == self.step:
            raise self.error
        return next(self.batches)

    def close(self):
        self.batches.close()


def test_without_evaluation_there_is_no_best(tmp_path):
    c = config()
    Run(c, tmp_path, "mae").fit(Regression(c))
    with pytest.raises(UserError, match="no best checkpoint"):
        load_variables(tmp_path, ("mae",), "best")


TINY = Corpus(train_writers=5, test_writers=1, pages=2, width=360, height=200, lines=3)
HELD = {"validation.share": 0.4, "validation.every": 2, "validation.patches_per_page": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "pages").mkdir()
    write_corpus(folder / "pages", TINY, workers=1)
    run_stage(toy(pretrain_config.get_config(), folder, **HELD), folder / "pretrain")
    return folder


def validation(folder):
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "best_step" in line]


def test_pretraining_evaluates_its_loss_and_its_pages(folder):
    found = validation(folder / "pretrain")
    assert [line["step"] for line in found] == [2, 4]
    for line in found:
        assert 0 < line["validation_map"] <= 1
        assert line["validation_loss"] > 0
    assert len({line["validation_loss"] for line in found}) == 2


def test_held_out_pages_are_not_trained_on(folder):
    held = json.loads((folder / "pretrain" / "validation.json").read_text())
    config = toy(pretrain_config.get_config(), folder, **HELD)
    store, ids = pretraining.open_and_plan(config, folder / "pretrain")
    assert sorted(ids) == held["pages"]
    task = pretraining.Pretraining(config, store, ids)
    seen = np.concatenate([task._plan[step] for step in range(config.total_steps)])
    trained = {store.manifest.pages[row].page_id for row in store.index["page"][seen]}
    assert trained
    assert not trained & ids
    without = pretraining.Pretraining(config, store)
    seen = np.concatenate([without._plan[step] for step in range(config.total_steps)])
    assert {store.manifest.pages[row].page_id for row in store.index["page"][seen]} & ids


def test_crops_are_evaluated_too(folder):
    config = toy(
        pretrain_config.get_config("source=crops"), folder,
        **HELD, **{"loader.workers": 1, "crops.patches_per_page": 8, "crops.size": 128},
    )  # fmt: skip
    source, ids = pretraining.open_and_plan(config, folder / "crops")
    assert not {page.page_id for page in source._recipe.manifest.pages} & ids
    run_stage(config, folder / "crops")
    assert [line["step"] for line in validation(folder / "crops")] == [2, 4]


@pytest.fixture(scope="module")
def finetuned(folder):
    changes = {**HELD, "which": "best"}
    run_stage(toy(finetune_config.get_config(), folder, **changes), folder / "finetune")
    return folder / "finetune"


def test_finetuning_evaluates_retrieval_and_starts_from_the_best(finetuned):
    found = validation(finetuned)
    assert [line["step"] for line in found] == [2, 4]
    assert all("validation_loss" not in line for line in found)
    assert all(0 < line["validation_map"] <= 1 for line in found)


@pytest.mark.parametrize("module", [pretrain_config, finetune_config])
def test_training_starts_from_the_checkpoint_that_is_asked_for(folder, module):
    stage = {pretrain_config: pretrain, finetune_config: finetune}[module]
    config = toy(module.get_config(), folder, **HELD)
    config.update({"checkpoint": str(folder / "pretrain"), "which": "first"})
    task = stage.open_task(config, folder / "started")
    with pytest.raises(UserError, match="unknown checkpoint 'first', known: last, best"):
        task.warm_start({"params": {"encoder": {}}})


def test_embedding_takes_the_checkpoint_that_is_asked_for(folder):
    for which in ("last", "best"):
        checkpoint = Checkpoint(folder / "pretrain", which)
        model = checkpoint.learned("page", "float32")
        wanted = load_variables(folder / "pretrain", ("mae",), which)[0]["params"]["encoder"]
        jax.tree.map(np.testing.assert_array_equal, model.variables["params"], wanted)
    with pytest.raises(UserError, match="unknown checkpoint 'first'"):
        Checkpoint(folder / "pretrain", "first")


def test_what_finetuning_started_from_is_compared(folder, finetuned, monkeypatch):
    loaded, load = [], describers.load_variables

    def recording(run_folder, kinds, which):
        loaded.append((run_folder.name, which))
        return load(run_folder, kinds, which)

    monkeypatch.setattr(describers, "load_variables", recording)
    checkpoint = Checkpoint(finetuned)
    checkpoint.compared("pretrained", checkpoint.recipe().resolved())
    assert loaded == [("finetune", "last"), ("pretrain", "best")]


def test_monitors_that_cannot_be_are_refused(folder):
    for changes, message in [
        ({"validation.monitor": "loss"}, "is for pretraining"),
        ({"validation.monitor": "accuracy"}, "unknown config.validation.monitor 'accuracy'"),
    ]:
        config = toy(finetune_config.get_config(), folder, **HELD, **changes)
        with pytest.raises(UserError, match=message):
            run_stage(config, folder / "refused")


def test_without_writers_pretraining_says_so_and_finetuning_refuses(folder, capsys):
    pages = folder / "anonymous"
    pages.mkdir()
    for i, path in enumerate(sorted((folder / "pages").rglob("*.png"))):
        (pages / f"{i}.png").write_bytes(path.read_bytes())
    changes = {**HELD, "data.pages": str(pages), "data.split": ""}
    run_stage(toy(pretrain_config.get_config(), folder, **changes), folder / "unknown")
    assert "only the loss is evaluated, no mAP" in capsys.readouterr().out
    assert all("validation_map" not in line for line in validation(folder / "unknown"))
    with pytest.raises(UserError, match="needs held-out writers with several pages"):
        run_stage(toy(finetune_config.get_config(), folder, **changes), folder / "refused2")


def test_warm_starts(folder, finetuned):
    """Pretraining from a pretraining, finetuning with the head of a finetuning; other sizes not."""
    start = load_variables(folder / "pretrain", ("mae",))[0]["params"]
    config = toy(pretrain_config.get_config(), folder, checkpoint=str(folder / "pretrain"))
    store, _ = pretraining.open_and_plan(config, folder / "none")
    task = pretraining.Pretraining(config, store)
    warm = task.warm_start(jax.jit(task.init)(jax.random.key(5)))["params"]
    jax.tree.map(np.testing.assert_array_equal, warm, start)
    config.target = "pixel"
    task = pretraining.Pretraining(config, store)
    new = jax.jit(task.init)(jax.random.key(5))
    warm = task.warm_start(new)["params"]
    jax.tree.map(np.testing.assert_array_equal, warm["encoder"], start["encoder"])
    jax.tree.map(np.testing.assert_array_equal, warm["decoder"], new["params"]["decoder"])
    config.model.width = 32
    task = pretraining.Pretraining(config, store)
    with pytest.raises(UserError, match="the encoder in .* does not fit"):
        task.warm_start(jax.jit(task.init)(jax.random.key(5)))
    changes = {"netrvlad.init": "checkpoint", "checkpoint": str(finetuned)}
    tuned = finetune.resolve(toy(finetune_config.get_config(), folder, **changes))
    labels = np.arange(len(store)) % 12
    task = finetuning.Finetuning(tuned, store, labels)
    warm = task.warm_start(jax.jit(task.init)(jax.random.key(5)))["params"]
    given = load_variables(finetuned, ("writer",))[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, warm, given)
