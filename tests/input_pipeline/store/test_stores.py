"""The store of a training stage: pages by default, ready-cut patches with an expression."""

import cv2
import numpy as np
import pytest
from store_helpers import sections, write_pages
from toy import toy

from saghog_jax.configs import finetune as finetune_config
from saghog_jax.configs import pretrain as pretrain_config
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.opening import open_store
from saghog_jax.input_pipeline.store.ready_patches import ready_labels
from saghog_jax.stages import run_stage
from saghog_jax.training import finetuning, labels

CLUSTER, WRITER, PAGE = r"(\d+)", r"\d+_(\d+)", r"MAX_(\d+)"


def silent(line):
    pass


def write_patches(folder, clusters=4, writers=2, each=6):
    """Patches named as the published extraction names them, in the splits train and test."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for cluster in range(clusters):
            for i in range(each):
                name = f"{cluster}/{cluster}_{i % writers}-IMG_MAX_{i % 3}_{i}.png"
                (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
                image = np.where(rng.random((32, 32)) < 0.3, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / split / name), image)


def ready_sections(folder, root, **changes):
    data, store = sections(folder, root, "offline")
    data.cluster_regex, data.writer_regex, data.page_regex = CLUSTER, WRITER, PAGE
    data.update(changes)
    return data, store


def test_pages_are_cut(tmp_path):
    args = sections(write_pages(tmp_path / "pages", 3), tmp_path / "stores")
    lines = []
    store = open_store(*args, lines.append)
    assert store.path == ensure_store(*args, silent)
    assert store.path.name.startswith("pretrain-")
    assert lines


def test_ready_cut_patches_are_taken_as_they_are(tmp_path):
    write_patches(tmp_path / "in")
    lines = []
    store = open_store(*ready_sections(tmp_path / "in", tmp_path / "out"), lines.append)
    assert store.path.parent == tmp_path / "out"
    assert store.path.name.startswith("ready-")
    assert len(store) == 2 * 4 * 6
    assert store.manifest.writers == ["0", "1"]
    assert lines


def test_the_sections_decide_split_and_patch_size(tmp_path):
    write_patches(tmp_path / "in")
    expression = r"(?P<split>\w+)/.*" + CLUSTER + "_"
    changes = {"cluster_regex": expression, "split": "train"}
    store = open_store(*ready_sections(tmp_path / "in", tmp_path / "out", **changes), silent)
    assert len(store) == 4 * 6
    assert {page.split for page in store.manifest.pages} == {"train"}
    changes["split"] = "validation"
    with pytest.raises(UserError, match="no patch has the split 'validation', known: test, train"):
        open_store(*ready_sections(tmp_path / "in", tmp_path / "out", **changes), silent)
    data, store = ready_sections(tmp_path / "in", tmp_path / "out")
    store.patch_size = 16
    with pytest.raises(UserError, match="32 x 32 pixels instead of 16 x 16"):
        open_store(data, store, silent)


def test_stages_that_need_pages_say_so(tmp_path):
    write_patches(tmp_path / "in")
    data, _ = ready_sections(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="ready-cut patches, which only pretraining .* read"):
        load_manifest(data)


def test_finetuning_learns_the_clusters_of_ready_cut_patches(tmp_path):
    write_patches(tmp_path / "in")
    config = toy(
        finetune_config.get_config(), tmp_path,
        **{"data.pages": str(tmp_path / "in"), "data.split": "", "data.cluster_regex": CLUSTER,
           "data.writer_regex": WRITER, "data.page_regex": PAGE, "checkpoint": "",
           "global_batch_size": 16},
    )  # fmt: skip
    assert len(run_stage(config, tmp_path / "finetune").skipped) == 0
    store = open_store(config.data, config.store, silent)
    classes = labels.make_labels(config, store)
    np.testing.assert_array_equal(classes, ready_labels(store))
    with finetuning.Finetuning(config, store, classes).batches(0) as batches:
        np.testing.assert_array_equal(np.unique(next(batches)["label"]), range(4))
    # Writers are labels too, and a name without clusters says so.
    config.labels = "writer"
    np.testing.assert_array_equal(labels.make_labels(config, store), store.writer_ids)
    config.labels, config.data.cluster_regex = "cluster", "()"
    with pytest.raises(UserError, match="has no labels; only a store of ready-cut patches"):
        labels.make_labels(config, open_store(config.data, config.store, silent))


def test_pretraining_reads_ready_cut_patches(tmp_path):
    write_patches(tmp_path / "in")
    config = toy(
        pretrain_config.get_config(), tmp_path,
        **{"data.pages": str(tmp_path / "in"), "data.split": "", "data.cluster_regex": CLUSTER,
           "data.page_regex": PAGE, "total_steps": 2},
    )  # fmt: skip
    assert len(run_stage(config, tmp_path / "pretrain").skipped) == 0
    assert [path.name[:6] for path in (tmp_path / "prepare").glob("*-*")] == ["ready-"]
