"""What the program sets before jax starts: the cache of compiled steps, moved or switched off."""

import subprocess
import sys

import pytest
from places import ROOT

# A stage that compiles something; the process is not replaced for huge pages.
PROGRAM = """
from saghog_jax import main
def stage(*args, **options):
    import jax
    jax.jit(lambda x: 2 * x)(1.0)
main.app.run = stage
main.run_main()
"""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, "cache/saghog_jax/jit"),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/elsewhere"}, "elsewhere"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, None),
    ],
)
def test_compiled_steps_are_kept_where_they_should(tmp_path, settings, kept):
    environ = {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "GLIBC_TUNABLES": "", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **{name: value.format(tmp=tmp_path) for name, value in settings.items()},
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", PROGRAM], env=environ, cwd=tmp_path, check=True)
    found = {path.parent for path in tmp_path.rglob("*-cache")}
    assert found == ({tmp_path / kept} if kept else set())
