"""The command line of a next stage, from what a stage returns (`NextStage`)."""

import importlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.configs import common
from saghog_jax.configs.regions import regions_config
from saghog_jax.runs.stage_result import NextStage


def next_command(following: NextStage, workdir: Path, variant: str = "") -> str:
    """The command of a next stage, with the fields that are not at their defaults.

    Args:
      following: the next stage.
      workdir: of this stage. A next stage is put beside it; the default folder, runs/STAGE, is
        followed by the default folder.
      variant: of this stage's config; used if the config of the next stage has it too.
    """
    regions = following.sections.get("regions")
    arguments = [following.variant or _shared_variant(following.stage, variant)]
    if regions is not None and regions.backend != "none":
        arguments.append(f"regions={regions.backend}")
    argument = ",".join(filter(None, arguments))
    words = [f"--config=configs/{following.stage}.py" + (f":{argument}" if argument else "")]
    for name, section in following.sections.items():
        default = _default(name, section, following.split)
        words += [f"--config.{name}.{key}={value}" for key, value in _changed(section, default)]
    for name, value in following.fields.items():
        if (name, value) != ("store.scale", 1):
            words.append(f"--config.{name}={_short(value) if isinstance(value, Path) else value}")
    folder = following.workdir or workdir.parent / following.stage
    if folder.parent != Path("runs").resolve():
        words.append(f"--workdir={_short(folder)}")
    remark = f"  # {following.remark}" if following.remark else ""
    return " ".join(["python -m saghog_jax.main", *map(shlex.quote, words)]) + remark


def _default(name: str, section: ConfigDict, split: str) -> ConfigDict:
    """The section as a config has it that nobody has changed."""
    if name == "data":
        return common.data_config(split)
    if name == "store":
        return common.store_config(section.rule)
    return regions_config(section.backend)


def _shared_variant(stage: str, variant: str) -> str:
    try:
        importlib.import_module(f"saghog_jax.configs.{stage}").get_config(variant)
    except ValueError:
        return ""
    return variant


def _changed(section: ConfigDict, default: ConfigDict) -> Iterator[tuple[str, object]]:
    """Fields of a section, and of the sections in it, that are not at their defaults."""
    for key in default:
        # The section of an older recipe may lack a field.
        value = section.get(key, default[key])
        if isinstance(value, ConfigDict):
            yield from ((f"{key}.{inner}", v) for inner, v in _changed(value, default[key]))
        elif value != default[key]:
            yield key, value


def _short(path: Path) -> str:
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
