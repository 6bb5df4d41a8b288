"""Every config and variant is built, locked and complete; every command in the texts parses."""

import ast
import importlib
import re
import shlex
import subprocess
import sys

import make_config_page
import pytest
from ml_collections import ConfigDict, config_flags
from places import ROOT
from toy import fields

from saghog_jax.configs import common
from saghog_jax.input_pipeline.regions.backends import BACKENDS
from saghog_jax.main import STAGES

CONFIGS = make_config_page.stages()
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "configs").glob("*.py"),
]


def test_every_config_is_a_stage_and_the_other_way_round():
    assert set(CONFIGS) == set(STAGES)


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_names_its_stage(name):
    module = importlib.import_module(f"saghog_jax.configs.{name}")
    assert module.get_config().stage == name
    assert f"python -m saghog_jax.main --config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_named_in_the_docstring_builds(name):
    module = importlib.import_module(f"saghog_jax.configs.{name}")
    with pytest.raises(ValueError, match="unknown variant 'nonsense', known: ") as error:
        module.get_config("nonsense")
    known = re.search(r"known: ([\w, ]+)", str(error.value)).group(1).split(", ")
    for variant in known:
        assert isinstance(module.get_config(variant), ConfigDict)
        if len(known) > 1:
            assert f"`{variant}`" in module.__doc__, variant
    with pytest.raises(ValueError, match="unknown config argument 'nonsense'"):
        module.get_config("nonsense=1")


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_stay_small(name):
    """Most fields of a default config without a regions backend."""
    module = importlib.import_module(f"saghog_jax.configs.{name}")
    argument = "regions=none" if "regions" in module.get_config() else None
    # Two more since pages may be those of a PDF (`data.pdf_dpi`) and may have light writing on dark
    # ground (`data.polarity`); two more for pages with much writing (`page.compact.full`).
    limit = {"pretrain": 117, "finetune": 143}.get(name, 75)
    assert len(fields(module.get_config(argument))) <= limit


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_field_is_explained(path):
    """A comment stands above each field that a config file makes."""
    lines = path.read_text().splitlines()
    explained = {}
    for function in ast.parse("\n".join(lines)).body:
        # Functions of these names change fields that others have made.
        if not isinstance(function, ast.FunctionDef) or function.name.startswith(
            ("_set_", "apply")
        ):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            parts = [part for target in node.targets for part in ast.walk(target)]
            targets = [
                part
                for part in parts
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name)
            ]
            # A call makes a whole section, whose fields are explained where it is made.
            makes_section = isinstance(node.value, ast.Call) and (
                not node.value.args or re.match(r"(\w+\.)?\w+_config\(", ast.unparse(node.value))
            )
            above, before = lines[node.lineno - 2].strip(), lines[node.lineno - 3].strip()
            commented = above.startswith("#") or (before.startswith("#") or "=" in above)
            for name in map(ast.unparse, targets):
                if name != "config.stage":
                    ok = makes_section or commented
                    explained[name] = explained.get(name, False) or bool(ok)
    assert [name for name, ok in explained.items() if not ok] == []


@pytest.mark.parametrize("name", ["prepare", "regions", "pretrain", "finetune", "embed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_chosen_backend_has_a_section(name, backend):
    module = importlib.import_module(f"saghog_jax.configs.{name}")
    regions = module.get_config(f"regions={backend}").regions
    assert regions.backend == backend
    sections = {key for key, value in regions.items() if isinstance(value, ConfigDict)}
    assert sections == {backend} - {"none"}
    assert f"`{backend}`" in make_config_page.explained(name)["regions.backend"][1]


def commands():
    """(file, words) of every command in the texts that names a config."""
    for path in TEXTS:
        text = re.sub(r"\\\n\s*", "", path.read_text())
        for line in text.splitlines():
            found = re.search(r"python -m saghog_jax\.main (--config.*)", line)
            if found and "`" not in found.group(1) and "STAGE" not in line:
                yield pytest.param(
                    shlex.split(found.group(1), comments=True), id=f"{path.name}: {line.strip()}"
                )


def parse_command(words: list[str]) -> ConfigDict:
    """The config of a command's words; each override names a field and has a value of its type."""
    import absl.flags

    values = absl.flags.FlagValues()
    absl.flags.DEFINE_string("workdir", None, "", flag_values=values)
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    argv = sys.argv
    # Overrides of a config are found on the real command line.
    sys.argv = ["main", *words]
    try:
        values(["main", *words])
    finally:
        sys.argv = argv
    del holder
    return values["config"].value


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_in_the_texts_parses(words):
    assert parse_command(words).stage in STAGES


def test_arguments_are_typed_and_mistakes_named():
    arg = common.parse_arg("paper,labels=writer,size=3,fast=true", ("cpu", "paper"), labels="x",
                           size=1, fast=False, rate=0.5)  # fmt: skip
    assert arg.to_dict() == {
        "variant": "paper", "labels": "writer", "size": 3, "fast": True, "rate": 0.5
    }  # fmt: skip
    assert common.parse_arg(None, ("cpu",)).variant == "cpu"
    for text, message in [
        ("papr", "unknown variant 'papr', known: cpu, paper; did you mean 'paper'?"),
        ("something", "unknown variant 'something', known: cpu, paper"),
        ("lables=3", "unknown config argument 'lables', known: labels; did you mean 'labels'?"),
        ("cpu,paper", "names 2 variants"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            common.parse_arg(text, ("cpu", "paper"), labels="x")
    with pytest.raises(ValueError, match="size='a' is not of type int"):
        common.parse_arg("size=a", ("cpu",), size=1)
    with pytest.raises(ValueError, match="fast='2' is not a boolean"):
        common.parse_arg("fast=2", ("cpu",), fast=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: --config is missing; one of configs/prepare.py, configs/pretrain.py"),
        (["--config=configs/none.py"], "there is no config file 'configs/none.py'; known: con"),
        (["--config=configs/serach.py"], "did you mean 'configs/search.py'?"),
        (["--config=configs/search.py", "--config.power=1"],
         "unknown config field 'power' of configs/search.py; configs/embed.py has it"),
        (["--config=configs/retrieve.py", "--config.store.scale=2"],
         "unknown config field 'store.scale' of configs/retrieve.py; configs/pretrain.py, "),
        (["--config=configs/search.py", "--config.xyzzy=1"],
         "unknown config field 'xyzzy'; docs/config.md lists all fields"),
        (["--config=configs/pretrain.py:papr"], "unknown variant 'papr'"),
        (["--config=configs/pretrain.py", "--config.data.page=x"],
         """unknown config field 'page'. Did you mean "pages" instead of "page"?"""),
        (["--config=configs/pretrain.py", "--config.stors.scale=2"],
         """unknown config field 'stors'. Did you mean "store" instead of "stors"?"""),
        (["--config=configs/pretrain.py", "--config.regions.ink.k=0.2"],
         "unknown config field 'regions.ink.k'; give --config=configs/pretrain.py:regions=ink"),
        (["--config=configs/pretrain.py", "--config.seed=x"], "--config.seed=x: invalid literal"),
        (["--config=configs/pretrain.py", "--workdri=x"], "Did you mean: workdir"),
        (["--config=configs/pretrain.py", "pages"], "unexpected argument 'pages'"),
        (["--config=configs/prepare.py", "--config.regions.backend=ink"],
         "--config=configs/prepare.py:regions=ink"),
        (["--config=configs/prepare.py:regions=sam_onnx"], "unknown regions backend 'sam_onnx'"),
        (["--config=configs/pretrain.py", "--config.data.pages=none", "--workdir={tmp}"], "none"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line(words, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "saghog_jax.main", *(w.format(tmp=tmp_path) for w in words)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
