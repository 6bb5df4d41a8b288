"""docs/config.md: every field of every stage, with its default and the comment above it.

python -m saghog_jax.configs.fields
"""

import ast
import importlib
import re
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax.input_pipeline.regions.backends import BACKENDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config.md"
NO_STAGES = ("__init__", "common", "training", "recipes", "fields")
# Files with sections that several stages have; a stage may change their defaults.
SHARED = ("common", "training", "regions")
# Sections whose functions build them under another name.
SECTIONS = {"labels": "pseudo_labels", **{name: f"regions.{name}" for name in BACKENDS}}
# The other store of prepare.
_REPEATED = ("stores.offline.",)
INTRODUCTION = """# Stages and the fields of their configs

Made from the files in `configs/` by `python -m saghog_jax.configs.fields`. A field is set on the
command line by `--config.FIELD=VALUE`. Defaults are those of the config without an argument. The
section `store` is called `stores.pretrain` and `stores.offline` in configs/prepare.py. A config has
the section of a regions backend, such as `regions.ink`, if its argument names the backend:
`configs/prepare.py:regions=ink`.
"""


def stages() -> list[str]:
    """Names of all stages, by the files in configs/."""
    files = (ROOT / "configs").glob("*.py")
    return sorted(path.stem for path in files if path.stem not in NO_STAGES)


def comments(path: Path) -> dict[str, str]:
    """Comment above each field that a config file sets, by the field's name without `config.`.

    A comment holds for the fields below it up to the next comment or blank line.
    """
    lines = path.read_text().splitlines()
    found: dict[str, str] = {}
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Assign)]
    # The first place is where a field is made; further ones change it.
    for node in sorted(nodes, key=lambda node: node.lineno):
        for target in node.targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                name = _name(part)
                if name:
                    found.setdefault(name, _above(lines, node.lineno))
                    _keys(lines, node.value, name, found)
    return {name: text for name, text in found.items() if text}


def _name(node: ast.expr) -> str:
    """`store.scale` of `store.scale`, `total_steps` of `config.total_steps`."""
    if not isinstance(node, ast.Attribute):
        return ""
    root, _, rest = ast.unparse(node).partition(".")
    return rest if root == "config" else f"{SECTIONS.get(root, root)}.{rest}"


def _keys(lines: list[str], value: ast.expr, prefix: str, found: dict[str, str]) -> None:
    """Comments inside a section that is written as a dictionary."""
    for node in ast.walk(value):
        if isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant):
                    text = _above(lines, key.lineno)
                    found.setdefault(f"{prefix}.{key.value}", text)


def _above(lines: list[str], number: int) -> str:
    """The comment that holds for line `number` (counted from 1)."""
    row = number - 2
    while row >= 0 and lines[row].strip() and not lines[row].strip().startswith("#"):
        row -= 1
    end = row + 1
    while row >= 0 and lines[row].strip().startswith("#"):
        row -= 1
    return " ".join(line.strip().lstrip("# ") for line in lines[row + 1 : end])


def flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Every field by its full name, such as `data.pages`."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def explained(stage: str) -> dict[str, tuple[object, str]]:
    """Default and comment of every field of a stage; the comment is empty where none is found."""
    get_config = importlib.import_module(f"saghog_jax.configs.{stage}").get_config
    defaults = flat(get_config())
    if "regions.backend" in defaults:
        for backend in BACKENDS:
            defaults = flat(get_config(f"regions={backend}")) | defaults
    texts: dict[str, str] = {}
    # The section `report` of search is that of retrieve.
    for name in ("retrieve", stage, *SHARED):
        texts |= comments(ROOT / "configs" / f"{name}.py")
    fields = {}
    for name, default in defaults.items():
        if name.startswith(_REPEATED):
            continue
        # What other stages call `store` prepare calls `stores.RULE`.
        plain = re.sub(r"^stores\.\w+\.", "store.", name)
        fields[plain] = (default, _text(texts, plain))
    del fields["stage"]
    return fields


def _text(texts: dict[str, str], name: str) -> str:
    """The comment of a field, or that of the section it stands in."""
    while name:
        if name in texts:
            return texts[name]
        name = name.rpartition(".")[0]
    return ""


def shared(fields: dict[str, dict[str, tuple[object, str]]]) -> dict[str, tuple[object, str]]:
    """Fields that several stages have with the same comment, with their most frequent default."""
    seen: dict[str, list[tuple[object, str]]] = {}
    for found in fields.values():
        for name, entry in found.items():
            seen.setdefault(name, []).append(entry)
    several = {}
    for name, entries in seen.items():
        if len(entries) > 1 and len({text for _, text in entries}) == 1:
            several[name] = max(entries, key=lambda entry: [e[0] for e in entries].count(entry[0]))
    return several


def render() -> str:
    """The text of docs/config.md."""
    fields = {stage: explained(stage) for stage in stages()}
    several = shared(fields)
    parts = [INTRODUCTION]
    for stage, found in fields.items():
        doc = importlib.import_module(f"saghog_jax.configs.{stage}").__doc__
        own = {name: entry for name, entry in found.items() if name not in several}
        other = {
            name: default
            for name, (default, _) in found.items()
            if name in several and default != several[name][0]
        }
        sections = sorted({name.partition(".")[0] for name in found if name in several})
        parts += [f"## {stage}\n", doc.splitlines()[0] + "\n", *_table(own)]
        if sections:
            words = ", ".join(f"`{name}`" for name in sections)
            parts.append(f"Shared, see below: {words}.")
        if other:
            words = ", ".join(f"`{name}={value!r}`" for name, value in other.items())
            parts.append(f"Other defaults than there: {words}.")
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
