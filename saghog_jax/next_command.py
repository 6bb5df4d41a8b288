"""The command that a stage names when it ends: the next stage, on the same pages and regions."""

import importlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config


def next_command(
    stage: str,
    *,
    variant: str = "",
    workdir: Path | None = None,
    data: ConfigDict | None = None,
    split: str = "train",
    store: ConfigDict | None = None,
    regions: ConfigDict | None = None,
    scale: float = 1.0,
    **fields: object,
) -> str:
    """The command of `stage`, with the fields of sections that are not at their defaults.

    Args:
      stage: the next one.
      variant: of its config; empty takes the one on this process's command line, if both have it.
      workdir: of this stage. One named after this stage is followed by one named after the next,
        beside it; the default, runs/STAGE, by the default.
      data, store, regions: sections that the next stage must read alike.
      scale: that pages were resized by, which the next stage must do too.
      split: what `data.split` is by default in this stage; only another one was asked for.
      fields: further fields; folders below the current one are named relative to it.
    """
    variant = variant or _given_variant(stage)
    words = [f"--config=configs/{stage}.py" + (f":{variant}" if variant else "")]
    for name, section, default in (
        ("data", data, common.data_config(split)),
        ("store", store, None if store is None else common.store_config(store.rule)),
        ("regions", regions, regions_config()),
    ):
        if section is not None:
            words += [f"--config.{name}.{key}={value}" for key, value in _changed(section, default)]
    if scale != 1:
        fields["store.scale"] = scale
    for name, value in fields.items():
        words.append(f"--config.{name}={_short(value) if isinstance(value, Path) else value}")
    if workdir is not None and workdir.parent != Path("runs").resolve():
        words.append(f"--workdir={_short(workdir.parent / stage)}")
    return " ".join(["python -m saghog_jax.main", *map(shlex.quote, words)])


def _given_variant(stage: str) -> str:
    """The variant that this process was started with, if the config of `stage` has it too."""
    if "config" not in flags.FLAGS or not flags.FLAGS["config"].present:
        return ""
    argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[2]
    variant = next((word for word in argument.split(",") if word and "=" not in word), "")
    try:
        importlib.import_module(f"saghog_jax.configs.{stage}").get_config(variant)
    except ValueError:
        return ""
    return variant


def _changed(section: ConfigDict, default: ConfigDict) -> Iterator[tuple[str, object]]:
    """Fields of a section, and of those in it, that are not at their defaults."""
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{key}.{inner}", v) for inner, v in _changed(value, default[key]))
        elif value != default[key]:
            yield key, value


def _short(path: Path) -> str:
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
