"""The command line of a next stage."""

import shlex
from pathlib import Path

from test_configs import parse_command

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.next_command import next_command
from saghog_jax.runs.stage_result import NextStage, folder_for_pages

START = "python -m saghog_jax.main --config=configs/"
RUNS = Path("runs").resolve()


def sections():
    store = common.store_config("offline")
    return {"data": common.data_config("train"), "store": store, "regions": regions_config()}


def test_defaults_are_left_out():
    assert next_command(NextStage("finetune", sections()), RUNS / "pretrain") == (
        f"{START}finetune.py"
    )
    run = RUNS / "finetune"
    assert next_command(NextStage("embed", fields={"checkpoint": run}), run) == (
        f"{START}embed.py --config.checkpoint=runs/finetune"
    )


def test_pages_and_regions_are_passed_on():
    parts = sections()
    parts["data"].pages, parts["store"].min_ink = "my pages", 0.1
    parts["regions"] = regions_config("ink")
    parts["regions"].ink.k = 0.2
    command = next_command(NextStage("pretrain", parts), RUNS / "prepare")
    assert command == (
        f"{START}pretrain.py:regions=ink '--config.data.pages=my pages' --config.store.min_ink=0.1 "
        "--config.regions.ink.k=0.2"
    )
    config = parse_command(shlex.split(command)[3:])
    assert (config.data.pages, config.regions.ink.k) == ("my pages", 0.2)
    # The stage regions reads all pages by default, training those of its split.
    data = common.data_config("")
    following = NextStage("pretrain", {"data": data}, split="")
    assert next_command(following, RUNS / "regions") == f"{START}pretrain.py"
    data.split = "test"
    assert next_command(following, RUNS / "regions").endswith(" --config.data.split=test")


def test_folders_stay_together_and_are_short(tmp_path):
    run = RUNS / "mine" / "pretrain"
    assert next_command(NextStage("finetune", fields={"checkpoint": run}), run) == (
        f"{START}finetune.py --config.checkpoint=runs/mine/pretrain --workdir=runs/mine/finetune"
    )
    run = tmp_path / "pretrain"
    assert next_command(NextStage("finetune", fields={"checkpoint": run}), run) == (
        f"{START}finetune.py --config.checkpoint={run} --workdir={tmp_path / 'finetune'}"
    )


def test_work_on_other_pages_has_its_own_folder(tmp_path, monkeypatch):
    """Where the user has not chosen another folder than the default one."""
    monkeypatch.chdir(tmp_path)
    for name in ("scans", "letters"):
        (tmp_path / name).mkdir()
    for name in ("list.csv", "letters/manifest.csv"):
        (tmp_path / name).touch()
    runs = tmp_path / "runs"
    for pages, folder in (
        ("scans", "runs/scans/pretrain"),
        ("list.csv", "runs/list/pretrain"),
        ("letters/manifest.csv", "runs/letters/pretrain"),
    ):
        assert folder_for_pages(runs / "regions", "pretrain", pages) == tmp_path / folder
    following = NextStage("pretrain", workdir=runs / "scans" / "pretrain", remark="now or later")
    assert next_command(following, runs / "regions") == (
        f"{START}pretrain.py --workdir=runs/scans/pretrain  # now or later"
    )
    # The built-in corpus, and a folder that the user has chosen.
    assert folder_for_pages(runs / "regions", "pretrain", "synthetic") is None
    assert folder_for_pages(runs / "mine" / "regions", "pretrain", "scans") is None


def test_the_factor_of_pages_is_passed_on():
    def command(scale):
        return next_command(NextStage("finetune", fields={"store.scale": scale}), RUNS / "x")

    assert command(2.0) == f"{START}finetune.py --config.store.scale=2.0"
    assert command(1.0) == f"{START}finetune.py"


def test_a_variant_is_passed_on_if_the_next_stage_has_it():
    def command(stage, variant, own=""):
        return next_command(NextStage(stage, variant=own), RUNS / "x", variant)

    assert command("finetune", "small") == f"{START}finetune.py:small"
    assert command("retrieve", "small") == f"{START}retrieve.py"
    assert command("finetune", "small", "hisfrag20") == f"{START}finetune.py:hisfrag20"
    assert command("finetune", "") == f"{START}finetune.py"
    assert command("embed", "grk50") == f"{START}embed.py"
