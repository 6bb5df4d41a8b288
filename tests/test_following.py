"""The command that a stage names as the next one."""

import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from test_configs import parse_command

from saghog_jax import next_command as following
from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.next_command import next_command

START = "python -m saghog_jax.main --config=configs/"


def sections():
    store = common.store_config("offline")
    return {"data": common.data_config("train"), "store": store, "regions": regions_config()}


@pytest.fixture
def given(monkeypatch):
    """Makes this process one that was started with `--config=ARGUMENT`."""

    def start(argument):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        values(["main", f"--config={argument}"])
        monkeypatch.setattr(following.flags, "FLAGS", values)

    return start


def test_nothing_is_said_that_is_a_default():
    assert next_command("finetune", **sections()) == f"{START}finetune.py"
    run = Path("runs").resolve() / "finetune"
    assert next_command("embed", workdir=run, checkpoint=run) == (
        f"{START}embed.py --config.checkpoint=runs/finetune"
    )


def test_pages_and_regions_go_along():
    parts = sections()
    parts["data"].pages, parts["store"].min_ink = "my pages", 0.1
    parts["regions"].backend, parts["regions"].ink.k = "ink", 0.2
    command = next_command("pretrain", **parts)
    assert command == (
        f"{START}pretrain.py '--config.data.pages=my pages' --config.store.min_ink=0.1 "
        "--config.regions.backend=ink --config.regions.ink.k=0.2"
    )
    # All pages are looked at by default, not trained on.
    looked = common.data_config("")
    assert next_command("pretrain", data=looked, split="") == f"{START}pretrain.py"
    looked.split = "test"
    assert next_command("pretrain", data=looked, split="").endswith(" --config.data.split=test")
    config = parse_command(shlex.split(command)[3:])
    assert (config.data.pages, config.regions.ink.k) == ("my pages", 0.2)


def test_folders_stay_together_and_are_named_briefly(tmp_path):
    here = Path.cwd() / "runs" / "mine" / "pretrain"
    assert next_command("finetune", workdir=here, checkpoint=here) == (
        f"{START}finetune.py --config.checkpoint=runs/mine/pretrain --workdir=runs/mine/finetune"
    )
    there = tmp_path / "pretrain"
    assert next_command("finetune", workdir=there, checkpoint=there) == (
        f"{START}finetune.py --config.checkpoint={there} --workdir={tmp_path / 'finetune'}"
    )


def test_the_factor_of_pages_goes_along():
    assert next_command("embed", scale=2.0) == f"{START}embed.py --config.store.scale=2.0"
    assert next_command("embed", scale=1.0) == f"{START}embed.py"


def test_a_recipe_goes_along_if_the_next_stage_has_it(given):
    given("configs/pretrain.py:small,regions=ink")
    assert next_command("finetune") == f"{START}finetune.py:small"
    assert next_command("retrieve") == f"{START}retrieve.py"
    assert next_command("finetune", variant="hisfrag20") == f"{START}finetune.py:hisfrag20"
    given("configs/pretrain.py:mask_ratio=0.9")
    assert next_command("finetune") == f"{START}finetune.py"
    given("configs/finetune.py:grk50")
    assert next_command("embed") == f"{START}embed.py"
