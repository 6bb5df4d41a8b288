"""The fields of configs in words: comments above fields, and which stages have a field.

The comments are read from the config files, so that each field is explained in one place.
"""

import ast
import difflib
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from saghog_jax import configs
from saghog_jax.input_pipeline.nested import flat
from saghog_jax.input_pipeline.regions.backends import BACKENDS
from saghog_jax.stages import STAGES

FOLDER = Path(configs.__file__).parent
# Files with sections of several stages; a stage may change the defaults.
SHARED = ("regions", "common", "training")
# Name of the variable that holds a section -> name of the section.
SECTIONS = {"labels": "pseudo_labels", **{name: f"regions.{name}" for name in BACKENDS}}
# The other store of prepare.
_REPEATED = ("stores.offline.",)
_WIDTH = 100


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
        defaults = flat(get_config(argument).to_dict()) | defaults
    texts = _texts(stage, FOLDER / f"{stage}.py")
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
    """The comment of a field, or the comment of its section.

    A section inside of another one is written as a section of its own.
    """
    while name:
        parts = name.split(".")
        for start in range(max(1, len(parts) - 1)):
            inner = ".".join(parts[start:])
            if inner in texts:
                return texts[inner]
        name = name.rpartition(".")[0]
    return ""


def describe_fields(config: ConfigDict, path: Path) -> Iterator[str]:
    """Lines that list the fields of a config: name, value and the comment above it.

    Args:
      path: the file of the config, which may be the user's own.
    """
    texts = _texts(config.get("stage", ""), path)
    before = ""
    for name, value in flat(config.to_dict()).items():
        if name == "stage":
            continue
        text = _text(texts, re.sub(r"^stores\.\w+\.", "store.", name))
        yield f"--config.{name}={_shown(value)}"
        # Fields next to each other may share a comment.
        if text != before:
            yield from textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        before = text


def _shown(value: object) -> str:
    if callable(value):
        return value.__name__
    return value if isinstance(value, str) else repr(value)


def _texts(stage: str, path: Path) -> dict[str, str]:
    """The comments of the configs of a stage, then those of the given file (a user's own)."""
    texts: dict[str, str] = {}
    # The section `report` of search is that of retrieve.
    for name in ("retrieve", stage, *SHARED):
        if (FOLDER / f"{name}.py").is_file():
            texts |= comments(FOLDER / f"{name}.py")
    return (comments(path) if path.is_file() else {}) | texts


def stages_with(field: str) -> list[str]:
    """The stages whose config has a field of this full name, such as `power` or `data.pages`."""
    return [stage for stage in STAGES if field in _names(stage)]


def _names(stage: str) -> set[str]:
    """Full names of the fields of a stage and of its sections, without the variants' own."""
    get_config = importlib.import_module(f"saghog_jax.configs.{stage}").get_config
    names: set[str] = set()
    for argument in [None, *(f"regions={b}" for b in BACKENDS if "regions" in get_config())]:
        for name in flat(get_config(argument).to_dict()):
            parts = name.split(".")
            names |= {".".join(parts[: end + 1]) for end in range(len(parts))}
    return names


def missing_config(path: str) -> str:
    """The message about a config file that does not exist; names the nearest that does."""
    known = [f"configs/{stage}.py" for stage in STAGES]
    stem = Path(path).stem
    near = [] if stem in STAGES else difflib.get_close_matches(stem, STAGES, n=1)
    hint = f"; did you mean 'configs/{near[0]}.py'?" if near else ""
    here = "" if Path("configs").is_dir() else " (relative to the folder of the repository)"
    return f"there is no config file {path!r}; known: {', '.join(known)}{here}{hint}"
