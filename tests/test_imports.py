"""Heavy libraries are loaded only by the work that needs them: commands start fast."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from planted import pages_of, planted
from store_helpers import make_store

# Each takes from a third of a second to several seconds to load.
HEAVY = {"jax", "flax", "orbax", "optax", "grain", "sklearn", "scipy", "pyarrow", "tensorflow"}
RUN = """
import json, sys
from pathlib import Path
from saghog_jax import main
from saghog_jax.configs import {stage} as module
from saghog_jax.stages import run_stage
config = module.get_config()
config.update_from_flattened_dict(json.loads(sys.argv[1]))
run_stage(config, Path(sys.argv[2]))
"""


def loaded(code: str, *arguments: str) -> set[str]:
    """The heavy libraries that a fresh process has loaded after `code`."""
    code += f"\nimport sys; print(*sorted({HEAVY} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.splitlines()[-1].split())


def loaded_by_stage(stage: str, workdir: Path, **fields: object) -> set[str]:
    return loaded(RUN.format(stage=stage), json.dumps(fields), str(workdir))


@pytest.mark.parametrize("stage", ["prepare", "regions", "retrieve", "verify"])
def test_the_module_of_a_stage_loads_nothing_heavy(stage):
    assert loaded(f"import saghog_jax.main, saghog_jax.{stage}") == set()


def test_verify_needs_nothing_heavy(tmp_path):
    make_store(tmp_path / "store", [1] * 80)
    assert loaded_by_stage("verify", tmp_path, stores=str(tmp_path / "store")) == set()


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """80 pages, not by `embed`."""
    folder = tmp_path_factory.mktemp("imports") / "embed"
    planted(folder, pages_of(20, 4))
    return str(folder)


def test_retrieval_without_map_needs_nothing_heavy(tmp_path, embeddings):
    fields = {"embeddings": embeddings, "report.map_pages": 0}
    assert loaded_by_stage("retrieve", tmp_path, **fields) == set()
    assert (tmp_path / "report.html").exists()


def test_only_the_map_of_the_report_loads_scikit_learn(tmp_path, embeddings):
    libraries = loaded_by_stage("retrieve", tmp_path, embeddings=embeddings)
    assert "sklearn" in libraries
    # Evidence is on, but needs a recipe, which these embeddings lack.
    assert "jax" not in libraries
