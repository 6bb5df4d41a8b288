"""Rooms import downwards only, and each module has one name."""

import ast
import configparser
import subprocess
import sys
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
PROCESS = (
    *("main", "__main__", "short_form", "restart", "next_command", "config_help", "stages", "api"),
    # Puts stages together, so that it reads their configs.
    "scans",
)


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


def pipeline_room(name: str) -> str:
    """The room inside input_pipeline; empty for the modules on its ground."""
    parts = name.split(".")[2:]
    return parts[0] if parts and parts[0] in PIPELINE else ""


def climbs(name: str, imported: str) -> bool:
    """Whether an import leads from a room to a higher one, or from a stage to another."""
    lower, higher = ROOMS.index(room(imported)), ROOMS.index(room(name))
    if room(name) == room(imported) == "stages":
        return name != imported
    if room(name) == room(imported) == "input_pipeline":
        order = ("", *PIPELINE)
        lower, higher = order.index(pipeline_room(imported)), order.index(pipeline_room(name))
    return lower > higher


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_downwards(name):
    for imported in imports(MODULES[name]):
        if imported.startswith("saghog_jax.configs"):
            # The command line reads configs; the library is given them.
            assert room(name) == "main", f"{name} imports {imported}"
            continue
        assert imported in MODULES, f"{name} imports {imported}, which does not exist"
        assert not climbs(name, imported), f"{name} imports {imported}"


def test_a_climb_is_noticed():
    assert climbs("saghog_jax.models.vit", "saghog_jax.training.loop")
    assert climbs("saghog_jax.embed", "saghog_jax.retrieve")
    assert climbs(
        "saghog_jax.input_pipeline.pages.images", "saghog_jax.input_pipeline.store.reader"
    )
    assert not climbs("saghog_jax.embed", "saghog_jax.models.vit")


@pytest.mark.parametrize("folder", ["configs", "tests", "benchmarks", "docs"])
def test_no_other_file_uses_the_bare_names(folder):
    for path in (ROOT / folder).rglob("*.py"):
        list(imports(path))


def test_packages_of_the_installation_are_the_rooms():
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("saghog_jax", "input_pipeline", "configs")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    packages = {p if p.startswith("saghog_jax") else f"saghog_jax.{p}" for p in packages}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(setup["options"]["packages"].split()) == packages


def test_no_module_is_loaded_twice():
    """All of them are imported, in one process, by their names; each file has one name."""
    code = f"""
import importlib, sys
sys.argv = ["pytest"]
for name in {sorted(set(MODULES) - {"saghog_jax.__main__", "saghog_jax.sam.onnx_backend"})}:
    importlib.import_module(name)
files = {{}}
folders = {tuple(f"{ROOT}/{name}/" for name in ("saghog_jax", "input_pipeline", "configs"))}
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and file.startswith(folders):
        files.setdefault(file, set()).add(name)
twice = {{file: names for file, names in files.items() if len(names) > 1}}
assert not twice, twice
assert not {{"configs", "input_pipeline"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


# Longer functions -> why.
LONG = {"builder_class": "the class body that TFDS wants, made for a collection"}


def test_modules_and_functions_are_short():
    for name, path in MODULES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in LONG:
                assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"
