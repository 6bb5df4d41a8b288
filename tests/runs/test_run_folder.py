"""Which fields may differ where a run goes on: those that docs/training.md names, and no others."""

import re

import pytest
from places import ROOT
from toy import fields

from saghog_jax.configs import finetune, pretrain
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.runs.folder import check_config, write_config

PAGE = ROOT / "docs" / "training.md"


def named() -> list[str]:
    text = PAGE.read_text()
    listed = text[text.index("only these fields may differ:") :].split("\n\n")[0]
    return re.findall(r"`([\w.]+)`", listed)


def other(value):
    """Another value of the same type."""
    if isinstance(value, tuple):
        return (*value, "x")
    return not value if isinstance(value, bool) else value + type(value)(1)


def refusal(config, folder) -> str:
    """Why a run with this config is refused; empty where it is not."""
    try:
        check_config(config, folder)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("module", [pretrain, finetune])
def test_a_run_goes_on_with_other_values_of_the_fields_that_the_docs_name(tmp_path, module):
    config = module.get_config("regions=ink")
    write_config(config, tmp_path)
    free = []
    for name, value in fields(config).items():
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name: other(value)})
        said = refusal(changed, tmp_path)
        assert not said or f"  {name}: " in said
        free += [] if said else [name]
    expected = [
        name
        for name in fields(config)
        if any(name == n or name.startswith(f"{n}.") for n in named())
    ]
    assert sorted(free) == sorted(expected)
