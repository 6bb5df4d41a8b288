"""Micro-batches, recomputation and devices change nothing but rounding, on the real models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from store_helpers import make_store
from toy import toy

from saghog_jax import finetune
from saghog_jax.configs import finetune as finetune_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.devices import sharding
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.training import finetuning, head_init, pretraining
from saghog_jax.training import gradients as objective

LABELS = (np.arange(100) % 8).astype(np.int32)
B = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("objective") / "store", [20] * 5)[0]


def build(stage, store, folder, **changes):
    """Task, variables and batch of a stage at toy size."""
    # Quicker to compile; what is left of augmentation is random all the same.
    changes = {"augment.erode": 0.0, "augment.dilate": 0.0, **changes}
    if stage == "pretrain":
        config = toy(pretrain_config.get_config(), folder, **changes)
        task = pretraining.Pretraining(config, store)
    else:
        config = toy(finetune_config.get_config(), folder, **{"checkpoint": "", **changes})
        task = finetuning.Finetuning(config, store, LABELS)
    variables = jax.jit(task.init)(jax.random.key(1))
    batch = store.gather(np.arange(B) * 3)
    if stage == "finetune":
        batch["label"] = LABELS[np.arange(B) * 3]
    return task, variables, batch


def gradients(task, variables, batch, n=1, mesh=None):
    def compute(variables, batch):
        loss, _, grads = objective.loss_and_gradients(task, variables, batch, jax.random.key(2), n)
        return loss, grads

    if mesh is None:
        return jax.jit(compute)(variables, {k: jnp.asarray(v) for k, v in batch.items()})
    layout = sharding.state_shardings(jax.eval_shape(lambda: variables), mesh)
    return jax.jit(compute, in_shardings=(layout, sharding.batch_sharding(mesh)))(
        jax.device_put(variables, layout), sharding.to_device(batch, mesh)
    )


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    size = float(optax.tree.norm(theirs[1]))
    assert size > 1e-3
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        # Sums in another order: float32 rounding of the whole gradient.
        np.testing.assert_allclose(a, b, atol=2e-6 * size)


@pytest.fixture(scope="module", params=["pretrain", "finetune"])
def plain(request, store, tmp_path_factory):
    """Stage, folder, and loss and gradients of the whole batch at once on one device."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, gradients(*build(request.param, store, folder))


def test_micro_batches_equal_the_large_batch(plain, store):
    stage, folder, expected = plain
    assert_same(gradients(*build(stage, store, folder), 8), expected)


def test_the_metric_loss_of_parts_would_be_another(store, tmp_path):
    """So the test above can fail: a mean over micro-batches sees fewer pairs."""
    task, variables, batch = build("finetune", store, tmp_path)
    whole = gradients(task, variables, batch, 2)
    task.mean_of_rows = True
    parts = gradients(task, variables, batch, 2)
    assert abs(float(parts[0]) - float(whole[0])) > 1e-3


def temporary_bytes(stage, store, folder, remat):
    """What the compiled gradient of a deeper model takes besides parameters and batch."""
    task, variables, batch = build(stage, store, folder, remat=remat, **{"model.depth": 6})

    def of(variables, batch):
        return objective.loss_and_gradients(task, variables, batch, jax.random.key(0))

    return jax.jit(of).lower(variables, batch).compile().memory_analysis().temp_size_in_bytes


def test_recomputation_changes_nothing_and_keeps_less(plain, store):
    stage, folder, expected = plain
    task, variables, batch = build(stage, store, folder, remat="blocks")
    assert_same(gradients(task, variables, batch), expected)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 4), sharding.AXES)
    assert_same(gradients(task, variables, batch, 2, mesh), expected)
    kept = [temporary_bytes(stage, store, folder, remat) for remat in ("none", "blocks")]
    assert kept[1] < 0.6 * kept[0], kept


@pytest.mark.parametrize(("data", "fsdp", "n"), [(2, 1, 1), (8, 1, 1), (1, 8, 1), (2, 4, 2)])
def test_every_mesh_gives_the_same_loss_and_gradients(plain, store, data, fsdp, n):
    """So the metric loss and its miner see the global batch on any number of devices."""
    stage, folder, expected = plain
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    mesh = jax.sharding.Mesh(devices, sharding.AXES)
    assert_same(gradients(*build(stage, store, folder), n, mesh), expected)


def test_dropout_belongs_to_the_patch_and_not_to_its_batch(store, tmp_path):
    task, variables, batch = build("finetune", store, tmp_path, dropout=0.5)
    prepare = jax.jit(task.prepare)
    outputs = jax.jit(lambda rows: task.outputs(variables, rows)[0][0])
    rows = prepare(batch, jax.random.key(0))
    whole = outputs(rows)
    part = outputs(jax.tree.map(lambda x: x[5:9], rows))
    np.testing.assert_allclose(part, whole[5:9], atol=1e-5)
    other = outputs({**rows, "key": prepare(batch, jax.random.key(1))["key"]})
    assert np.abs(other - whole).max() > 1e-3


def test_what_does_not_divide_is_refused():
    config = ConfigDict({"accumulate": 3, "global_batch_size": 32})
    with pytest.raises(UserError, match="=32 does not divide into config.accumulate=3"):
        objective.check_accumulation(config, 1)
    config.accumulate = 4
    objective.check_accumulation(config, 8)
    with pytest.raises(UserError, match="that 16 devices can share"):
        objective.check_accumulation(config, 16)


def test_unknown_recomputation_is_refused(store, tmp_path):
    for stage in ("pretrain", "finetune"):
        with pytest.raises(UserError, match="unknown config.remat 'all', known: none, blocks"):
            build(stage, store, tmp_path, remat="all")


def test_batch_statistics_are_not_accumulated(tmp_path):
    config = toy(finetune_config.get_config("encoder=resnet20"), tmp_path, accumulate=2)
    with pytest.raises(UserError, match="accumulate=2 would change the batch statistics"):
        finetune.resolve(config)


@pytest.mark.parametrize("samples", [40, 1000])
def test_first_centres_are_fitted_on_at_most_so_many_features(
    store, tmp_path, monkeypatch, samples
):
    task, variables, _ = build("finetune", store, tmp_path, **{"netrvlad.init_samples": samples})
    fitted = []

    class Recorded(head_init.MiniBatchKMeans):
        def fit(self, features):
            fitted.append(features.shape)
            return super().fit(features)

    monkeypatch.setattr(head_init, "MiniBatchKMeans", Recorded)
    started = task.warm_start(variables)
    # The store has 100 patches.
    assert fitted == [(min(samples, 100), 16)]
    centroids = started["params"]["netrvlad"]["centroids"]
    assert np.abs(centroids - variables["params"]["netrvlad"]["centroids"]).max() > 0.01


def test_the_published_recipes_take_200_000_features():
    assert finetune_config.get_config("historical_wi").netrvlad.init_samples == 200_000
    assert finetune_config.get_config("hisfrag20").netrvlad.init_samples == 200_000


@pytest.mark.parametrize(
    ("labels", "what"), [("cluster", "pseudo labels"), ("page", "pages"), ("writer", "writers")]
)
def test_pictures_say_what_a_class_is(store, tmp_path, labels, what):
    task, variables, _ = build("finetune", store, tmp_path, labels=labels)
    (picture,) = task.pictures(variables, rows=3)
    assert f"3 classes ({what}): " in picture.description
