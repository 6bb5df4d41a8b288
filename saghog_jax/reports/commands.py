"""The command that wrote a report, which the report shows to those who want more evidence."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict


def command_of(config: ConfigDict, names: Sequence[str], workdir: Path) -> str:
    """The command of a stage, with the fields `names` that decide its ranking.

    Args:
      names: fields and sections of `config`. Empty fields are left out, and sections that are
        switched off: their first field of `mode`, `method` or `backend` is `none`.
    """
    words = [f"--config=configs/{config.stage}.py"]
    for name in names:
        words += [f"--config.{field}={value}" for field, value in _fields(name, config[name])]
    words.append(f"--workdir={workdir}")
    return " ".join(["python -m saghog_jax.main", *map(shlex.quote, words)])


def _fields(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping | ConfigDict):
        if "none" in (value.get("mode"), value.get("method")):
            return
        for key, part in value.items():
            yield from _fields(f"{name}.{key}", part)
    elif value not in ("", None, False):
        yield name, value
