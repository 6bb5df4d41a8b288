"""The number of CPU devices: by the model, by the run folder, and by the config."""

import json
import sys

import jax
import pytest
from processes import start

from saghog_jax.configs import finetune, pretrain
from saghog_jax.devices import cores
from saghog_jax.input_pipeline.errors import UserError


def config(module, variant, **fields):
    made = module.get_config(variant)
    made.update_from_flattened_dict(fields)
    return made


@pytest.mark.parametrize(
    ("module", "variant", "fields", "expected"),
    [
        (pretrain, "small", {}, 4),
        (pretrain, "cpu", {}, 2),
        (finetune, "small", {"checkpoint": ""}, 4),
        # Of the cores only as many as divide the batch into parts of at least 32 patches.
        (pretrain, "small", {"global_batch_size": 224}, 1),
        (pretrain, "small", {"accumulate": 4}, 2),
        # Large models, other encoders and other meshes.
        (pretrain, "paper", {}, 1),
        (finetune, "small", {"checkpoint": "", "encoder": "resnet20"}, 1),
        (pretrain, "small", {"mesh.data": 1}, 1),
        (pretrain, "small", {"mesh.fsdp": 2}, 1),
        # A number of the config.
        (finetune, "small", {"checkpoint": "", "cpu_devices": 3}, 3),
        (pretrain, "paper", {"cpu_devices": 2}, 2),
    ],
)
def test_the_number_of_a_new_run(module, variant, fields, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 6)
    assert cores.number(config(module, variant, **fields), tmp_path) == expected


def test_a_finetuning_has_the_size_of_the_model_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    made = config(finetune, "small", checkpoint=str(tmp_path))
    for width, expected in ((512, 1), (64, 2)):
        (tmp_path / "config.json").write_text(json.dumps({"model": {"width": width}}))
        assert cores.number(made, tmp_path / "new") == expected


def test_a_run_keeps_its_number(tmp_path):
    made = config(pretrain, "small")
    (tmp_path / "config.json").write_text(json.dumps({"cpu_devices": 7}))
    assert cores.number(made, tmp_path) == 7
    made.cpu_devices = 2
    assert cores.number(made, tmp_path) == 2
    made.cpu_devices = 0
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    assert cores.number(made, tmp_path) == 1


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.cpu_devices=-1 must be 0 or a number of devices"):
        cores.number(config(pretrain, "small", cpu_devices=-1), tmp_path)


DEVICES = """
import sys
from pathlib import Path
from saghog_jax.configs import pretrain
from saghog_jax.devices import cores
config = pretrain.get_config()
config.cpu_devices = 2
config.distributed.mode = sys.argv[1]
cores.divide(config, Path())
import jax
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("flags", "mode", "expected"),
    [
        ("", "off", 2),
        ("", "explicit", 1),
        ("--xla_force_host_platform_device_count=3", "off", 3),
    ],
)
def test_the_devices_of_a_process(flags, mode, expected):
    process = start([sys.executable, "-c", DEVICES, mode], XLA_FLAGS=flags)
    assert process.communicate()[0] == f"{expected}\n"


def test_the_command_line_divides_the_cores():
    words = ("-m", "saghog_jax.main", "--config=configs/pretrain.py", "--config.cpu_devices=-1")
    process = start([sys.executable, *words], XLA_FLAGS="", SAGHOG_NO_RESTART="1")
    assert process.communicate()[0].startswith("error: config.cpu_devices=-1 must be 0 or")
    assert process.returncode == 2


def test_the_resolved_config_has_the_devices_of_this_process():
    assert cores.resolve(config(pretrain, "small")).cpu_devices == jax.local_device_count()
