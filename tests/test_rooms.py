"""Rooms import downwards only, and each module has one name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

# Lowest first. `stages` are the modules on the ground of saghog_jax but for the process's own.
ROOMS = (
    *("input_pipeline", "devices", "models", "weights", "runs", "retrieval", "training", "sam"),
    *("embedding", "evidence", "reports", "stages", "main"),
)
# Inside input_pipeline; its ground is lowest.
PIPELINE = ("processes", "datasets", "pages", "cutting", "regions", "store", "labels", "batches")
PROCESS = ("main", "__main__", "restart")


def modules() -> dict[str, Path]:
    """Every module of the library by its name; configs are not part of the library."""
    found = {}
    for folder, prefix in (("saghog_jax", ""), ("input_pipeline", "saghog_jax.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = prefix + ".".join(parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it, as full names of modules of this project."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("configs", "input_pipeline"):
                pytest.fail(f"{path}: the bare name {name}")
            if name.startswith("saghog_jax"):
                yield name if name in MODULES else name.rpartition(".")[0]


def room(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 1:
        return "main"
    if parts[1] in ROOMS:
        return parts[1]
    return "main" if parts[1] in PROCESS else "stages"
