"""Writes docs/config.md: every field of every stage, with its default and the comment above it.

python docs/make_config_page.py
"""

import ast
import importlib
import re
from pathlib import Path

from flax.traverse_util import flatten_dict

from saghog_jax.input_pipeline.regions.backends import BACKENDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"
NO_STAGES = ("__init__", "common", "training", "recipes")
# Files with sections of several stages; a stage may change the defaults.
SHARED = ("common", "training", "regions")
# Name of the variable that holds a section -> name of the section.
SECTIONS = {"labels": "pseudo_labels", **{name: f"regions.{name}" for name in BACKENDS}}
# The other store of prepare.
_REPEATED = ("stores.offline.",)
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


def comments(path: Path) -> dict[str, str]:
    """Name of each field that a config file sets, without `config.` -> the comment above it.

    A comment belongs to all fields between it and the next comment or blank line.
    """
    lines = path.read_text().splitlines()
    texts: dict[str, str] = {}
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Assign)]
    # The first commented assignment creates a field; further ones change it.
    for node in sorted(nodes, key=lambda node: node.lineno):
        for target in node.targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                name = _name(part)
                if name:
                    texts[name] = texts.get(name) or _above(lines, node.lineno)
                    _keys(lines, node.value, name, texts)
    return {name: text for name, text in texts.items() if text}


def _name(node: ast.expr) -> str:
    """`store.scale` for `store.scale`, `total_steps` for `config.total_steps`; else empty."""
    if not isinstance(node, ast.Attribute):
        return ""
    root, _, rest = ast.unparse(node).partition(".")
    return rest if root == "config" else f"{SECTIONS.get(root, root)}.{rest}"


def _keys(lines: list[str], value: ast.expr, prefix: str, texts: dict[str, str]) -> None:
    """Adds the comments inside a section that is written as a dictionary to `texts`."""
    for node in ast.walk(value):
        if isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant):
                    text = _above(lines, key.lineno)
                    texts.setdefault(f"{prefix}.{key.value}", text)


def _above(lines: list[str], number: int) -> str:
    """The comment that belongs to line `number` (counted from 1)."""
    row = number - 2
    while row >= 0 and lines[row].strip() and not lines[row].strip().startswith("#"):
        row -= 1
    end = row + 1
    while row >= 0 and lines[row].strip().startswith("#"):
        row -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[row + 1 : end])


def explained(stage: str) -> dict[str, tuple[object, str]]:
    """Name of every field of a stage -> its default and its comment (empty if it has none)."""
    get_config = importlib.import_module(f"saghog_jax.configs.{stage}").get_config
    arguments = [None]
    if "regions" in get_config():
        arguments += [f"regions={backend}" for backend in BACKENDS]
    defaults: dict[str, object] = {}
    for argument in arguments:
        defaults = flatten_dict(get_config(argument).to_dict(), sep=".") | defaults
    texts: dict[str, str] = {}
    # The section `report` of search is that of retrieve.
    for name in ("retrieve", stage, *SHARED):
        texts |= comments(ROOT / "configs" / f"{name}.py")
    fields = {}
    for name, default in defaults.items():
        if name.startswith(_REPEATED):
            continue
        # The section `store` of other stages is called `stores.RULE` in prepare.
        plain = re.sub(r"^stores\.\w+\.", "store.", name)
        fields[plain] = (default, _text(texts, plain))
    del fields["stage"]
    return fields


def _text(texts: dict[str, str], name: str) -> str:
    """The comment of a field, or the comment of its section."""
    while name:
        if name in texts:
            return texts[name]
        name = name.rpartition(".")[0]
    return ""


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
