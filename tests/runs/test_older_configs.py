"""Runs and embeddings of older versions open, or are refused with the remedy."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from messages import message_of
from ml_collections import ConfigDict
from places import TESTS
from toy import fields

from saghog_jax.configs import embed
from saghog_jax.configs.regions import regions_config
from saghog_jax.embedding.recipe import PageRecipe, recipe_parts
from saghog_jax.embedding.run_recipe import default_recipe
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.regions.backends import make_backend
from saghog_jax.runs.checkpoint import read_config
from saghog_jax.runs.folder import check_config
from saghog_jax.runs.older_configs import (
    existing_words_file,
    read_run_config,
    upgrade_config,
    upgrade_meta,
)

# Written by the first version of both stages (`first`) and by the last one before names changed.
OLD = sorted((TESTS / "runs" / "old_configs").glob("*.json"))
# The argument of today's config that gives an old one.
ARGUMENTS = {
    "default": "",
    "small": "small",
    "paper": "paper",
    "historical_wi": "historical_wi",
    "regions_ink": "regions=ink",
    "regions_sam": "regions=sam",
    "regions_sam_onnx": "regions=sam",
}


def today(path) -> ConfigDict:
    stage, _, name = path.stem.partition("_")
    module = importlib.import_module(f"saghog_jax.configs.{stage}")
    return module.get_config(ARGUMENTS.get(name, ""))


def run_folder(path, folder):
    (folder / "config.json").write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_run_has_every_field_of_todays_config(path, tmp_path):
    config = read_config(run_folder(path, tmp_path))
    assert fields(config).keys() == fields(today(path)).keys()
    for name, value in fields(config).items():
        assert isinstance(value, type(json.loads(json.dumps(fields(today(path))[name])))), name


@pytest.mark.parametrize(
    "path", [path for path in OLD if "first" not in path.stem], ids=lambda path: path.stem
)
def test_training_goes_on_in_an_old_run_folder(path, tmp_path):
    config = today(path)
    config.precision = "float32"
    # Pages of older runs of the recipe `small` were cut at each scale.
    config.store.update(detect_scale=0.0, detect_on="binary")
    if path.stem.endswith("sam_onnx"):
        config.regions.sam.engine = "onnx"
    check_config(config, run_folder(path, tmp_path))
    config.total_steps += 1
    assert f"  total_steps: {config.total_steps - 1} there" in _refusal(config, tmp_path)


def test_a_run_without_a_newer_field_has_its_default(tmp_path):
    path = TESTS / "runs" / "old_configs" / "finetune_small.json"
    config = json.loads(path.read_text())
    del config["embed_dim"], config["loss"]["temperature"]
    config["total_steps"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    run, defaults = read_config(tmp_path), today(path)
    assert run.embed_dim == defaults.embed_dim
    assert run.loss.temperature == defaults.loss.temperature
    # Values of the run stay.
    assert run.total_steps == 7 != defaults.total_steps


def _refusal(config, folder) -> str:
    with pytest.raises(Exception, match="was made with another config") as caught:
        check_config(config, folder)
    return str(caught.value)


def test_values_stay_under_new_names(tmp_path):
    config = json.loads((TESTS / "runs" / "old_configs" / "finetune_small.json").read_text())
    config |= {"init_from": "a", "init_checkpoint": "best", "bag": 4, "per_class": 8}
    upgraded = upgrade_config(config)
    names = ("checkpoint", "which", "patches_per_bag", "patches_per_class")
    assert [upgraded[name] for name in names] == ["a", "best", 4, 8]
    assert upgrade_config(upgraded) == upgraded


@pytest.mark.parametrize(
    ("backend", "engine", "files"),
    [("sam", "flax", {"weights": "w.pth"}), ("sam_onnx", "onnx", {"encoder": "e", "decoder": "d"})],
)
def test_segment_anything_stands_once(backend, engine, files):
    path = TESTS / "runs" / "old_configs" / f"pretrain_regions_{backend}.json"
    config = json.loads(path.read_text())
    config["regions"][backend] |= {**files, "max_masks": 7}
    regions = upgrade_config(config)["regions"]
    expected = regions_config("sam").to_dict()
    expected["sam"] |= {"engine": engine, **files, "max_masks": 7}
    assert regions == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "it is not a JSON object"),
        ("{}", "its stage is None, expected pretrain or finetune"),
        ('{"stage": "embed"}', "its stage is 'embed', expected pretrain or finetune"),
        ('{"stage": "pretrain", "data": {"pages": ""}}', "it has no 'augment'"),
    ],
)
def test_what_is_no_run_is_refused_with_the_remedy(tmp_path, text, reason):
    (tmp_path / "config.json").write_text(text)
    message = message_of(read_run_config, tmp_path / "config.json")
    assert reason in message
    assert message.endswith("train again into another --workdir")
    assert message_of(read_config, tmp_path) == message
    with pytest.raises(UserError):
        check_config(today(OLD[0]), tmp_path)


def test_a_backend_without_its_section_is_explained_by_the_backends(tmp_path):
    config = json.loads((TESTS / "runs" / "old_configs" / "finetune_regions_ink.json").read_text())
    del config["regions"]["ink"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = message_of(make_backend, read_config(tmp_path).regions)
    assert "--config=configs/prepare.py:regions=ink" in message


OLD_META = json.loads((TESTS / "runs" / "old_meta" / "finetuned.json").read_text())


def test_old_meta_of_embeddings():
    before = json.dumps(OLD_META)
    upgraded = upgrade_meta(OLD_META)
    assert json.dumps(OLD_META) == before
    assert upgrade_meta(upgraded) == upgraded
    keys = ("model", "input_digest", "checkpoint", "checkpoint_folder", "which", "digests")
    others = ("recipe", "aggregation", "regions", "versions", "patches")
    base = ("format", "rows", "dim", "pages_root")
    assert upgraded.keys() == {*keys, *others, *base}
    assert upgraded["input_digest"] == OLD_META["made_from"]
    assert upgraded["digests"] == {"netrvlad": OLD_META["checkpoint"]}
    # The recipe is the one that embed uses today for the same config.
    today = default_recipe("netrvlad", "binary").with_config(embed.get_config())
    today = dataclasses.replace(today, precision=OLD_META["precision"])
    assert PageRecipe.from_json(upgraded["recipe"]) == PageRecipe.from_json(today.to_json())
    assert upgraded["recipe"].keys() == today.to_json().keys()


def test_old_meta_with_sift_and_regions():
    old = OLD_META | {
        "descriptor": "netrvlad",
        "sift": {"upright": 0.15, "found": 0.7},
        "sift_words": {"upright": "d1", "found": "d2"},
        "scales": [1.0, 0.5],
    }
    old["regions_config"] = old["regions_config"] | {"backend": "ink"}
    upgraded = upgrade_meta(old)
    recipe = PageRecipe.from_json(upgraded["recipe"])
    assert recipe.parts == recipe_parts("netrvlad", 0.4, {"patch": 0.15, "keypoint": 0.7})
    assert recipe.scales == (1.0, 0.5)
    assert recipe.regions == regions_config("ink").to_dict()
    digests = {"netrvlad": old["checkpoint"], "sift_patch": "d1", "sift_keypoint": "d2"}
    assert upgraded["digests"] == digests
    alone = upgrade_meta(OLD_META | {"model": "sift_found", "descriptor": "sift_found"})
    assert alone["model"] == "sift_keypoint"
    assert [part["descriptor"] for part in alone["recipe"]["parts"]] == ["sift_keypoint"]


def test_old_meta_without_all_settings():
    for changes in ({"patch_whitening": "fit, 8 dims from 90 patches"}, {"pooling": "gmp"}):
        upgraded = upgrade_meta(OLD_META | changes)
        assert "recipe" not in upgraded
        assert upgraded["input_digest"] == OLD_META["made_from"]
    # Of a folder that was not written by embed.
    assert upgrade_meta({"model": "finetuned"}) == {"model": "finetuned"}
    with pytest.raises(ValueError, match="it has no 'power'"):
        upgrade_meta({key: value for key, value in OLD_META.items() if key != "power"})


def test_old_names_of_files_of_words(tmp_path):
    for old, new in (("upright", "patch"), ("found", "keypoint")):
        path = tmp_path / f"sift_words_{new}.npy"
        assert existing_words_file(path) == path
        np.save(tmp_path / f"sift_words_{old}.npy", np.zeros((2, 128), np.float32))
        assert existing_words_file(path) == tmp_path / f"sift_words_{old}.npy"
        np.save(path, np.zeros((2, 128), np.float32))
        assert existing_words_file(path) == path
