"""Writes docs/config.md: every field of every stage, with its default and the comment above it.

python docs/make_config_page.py
"""

import importlib
from pathlib import Path

from saghog_jax.config_help import explained

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"
NO_STAGES = ("__init__", "common", "training", "recipes")
INTRODUCTION = """# Stages and the fields of their configs

Written from the files in `configs/` by `python docs/make_config_page.py`. A field is set on the
command line by `--config.FIELD=VALUE`. Defaults are those of the config without an argument. The
section `store` is called `stores.pretrain` and `stores.offline` in configs/prepare.py. A config has
the section of a regions backend, such as `regions.ink`, if its argument names the backend:
`configs/prepare.py:regions=ink`.
"""


def stages() -> list[str]:
    """Names of all stages, from the files in configs/."""
    files = (ROOT / "configs").glob("*.py")
    return sorted(path.stem for path in files if path.stem not in NO_STAGES)


def shared(fields: dict[str, dict[str, tuple[object, str]]]) -> dict[str, tuple[object, str]]:
    """Fields of several stages with the same comment, each with its most frequent default."""
    by_name: dict[str, list[tuple[object, str]]] = {}
    for stage_fields in fields.values():
        for name, entry in stage_fields.items():
            by_name.setdefault(name, []).append(entry)
    several = {}
    for name, entries in by_name.items():
        if len(entries) > 1 and len({text for _, text in entries}) == 1:
            several[name] = max(entries, key=lambda entry: [e[0] for e in entries].count(entry[0]))
    return several


def render() -> str:
    """The text of docs/config.md."""
    fields = {stage: explained(stage) for stage in stages()}
    several = shared(fields)
    parts = [INTRODUCTION]
    for stage, stage_fields in fields.items():
        doc = importlib.import_module(f"saghog_jax.configs.{stage}").__doc__
        own = {name: entry for name, entry in stage_fields.items() if name not in several}
        other = {
            name: default
            for name, (default, _) in stage_fields.items()
            if name in several and default != several[name][0]
        }
        sections = sorted({name.partition(".")[0] for name in stage_fields if name in several})
        parts += [f"## {stage}\n", doc.splitlines()[0] + "\n", *_table(own)]
        if sections:
            words = ", ".join(f"`{name}`" for name in sections)
            parts.append(f"Shared, see below: {words}.")
        if other:
            words = ", ".join(f"`{name}={value!r}`" for name, value in other.items())
            parts.append(f"Defaults that differ there: {words}.")
        parts.append("")
    parts += ["## Shared fields\n", *_table(dict(sorted(several.items())))]
    return "\n".join(parts)


def _table(fields: dict[str, tuple[object, str]]) -> list[str]:
    if not fields:
        return []
    rows = ["| field | default | |", "|---|---|---|"]
    for name, (default, text) in fields.items():
        shown = default.__name__ if callable(default) else repr(default)
        cells = (f"`{name}`", f"`{shown}`", text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


if __name__ == "__main__":
    PAGE.write_text(render())
    print(f"written: {PAGE}")
