"""The start of the program: the cache of compiled steps, huge pages, the help."""

import os
import subprocess
import sys

import pytest
from flax.traverse_util import flatten_dict
from places import ROOT

from saghog_jax import restart
from saghog_jax.configs import search

# A stage that compiles something.
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


def start(*words, **environ):
    return subprocess.run(
        [sys.executable, "-m", "saghog_jax.main", *words],
        cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def commands(monkeypatch):
    """Commands that this process is replaced by."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GLIBC_TUNABLES", restart.OFF):
        # Set before it is deleted, so that the value of the test is removed at its end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, words: commands.append((program, words)))
    return commands


def test_the_process_is_restarted_once_and_says_so(commands, capsys):
    restart.use_huge_pages()
    assert commands == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    line = "restarting this process with huge memory pages (SAGHOG_NO_RESTART=1 turns this off)\n"
    assert capsys.readouterr().out == line
    restart.use_huge_pages()
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("SAGHOG_NO_RESTART", "1"), ("GLIBC_TUNABLES", "glibc.malloc.check=1")]
)
def test_the_restart_can_be_turned_off(commands, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    restart.use_huge_pages()
    assert not commands
    assert not capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are set on Linux alone")
@pytest.mark.parametrize("stage", ["finetune", "verify"])
def test_only_training_and_embedding_restart(stage, tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    field = {"finetune": "data.pages", "verify": "stores"}[stage]
    words = (f"--config=configs/{stage}.py", f"--config.{field}={tmp_path}/none")
    done = start(*words, f"--workdir={tmp_path}", SAGHOG_NO_RESTART="0")
    # The command fails after the restart, as it does without one.
    assert done.returncode == 2
    assert done.stdout.count("restarting") == (stage in restart.STAGES)
    assert start(*words, f"--workdir={tmp_path}", SAGHOG_NO_RESTART="1").stderr == done.stderr


def test_help_names_the_flags_and_the_exit_statuses():
    done = start("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("--config: ", "--workdir: ", "Exit status: 0: done.", "configs/search.py"):
        assert text in done.stdout


def test_help_lists_the_fields_of_a_config_with_their_comments():
    done = start("--help", "--config=configs/search.py", "--config.top_k=3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    row = lines.index("--config.top_k=3")
    assert lines[row + 1] == "    Matches listed for each query."
    row = lines.index("--config.report.evidence.matches=3")
    assert lines[row + 1] == "    Matches of each query, from the first rank on."
    fields = search.get_config().to_dict()
    del fields["stage"]
    for name in flatten_dict(fields, sep="."):
        assert any(line.startswith(f"--config.{name}=") for line in lines), name


def test_help_reads_the_comments_of_a_users_own_config(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from saghog_jax.configs import search\n\n\ndef get_config():\n"
        "    config = search.get_config()\n    # My own remark.\n    config.mine = 1\n"
        "    return config\n"
    )
    done = start("--help", f"--config={tmp_path}/mine.py")
    assert "--config.mine=1\n    My own remark.\n" in done.stdout
    assert "--config.top_k=10\n    Matches listed for each query.\n" in done.stdout


def test_warnings_as_errors_do_not_stop_the_command_line(tmp_path):
    words = ["-m", "saghog_jax.main", "--config=configs/verify.py", "--config.stores=none"]
    found = [
        subprocess.run(
            [sys.executable, *options, *words, f"--workdir={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True,
        )
        for options in ([], ["-W", "error"])
    ]  # fmt: skip
    assert found[0].returncode == found[1].returncode == 2
    assert found[0].stderr == found[1].stderr
    assert len(found[0].stderr.splitlines()) == 1


# A user whom the system does not know, as containers start programs.
NOBODY = """
import os, pwd
def unknown(*args):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = pwd.getpwnam = unknown
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
from saghog_jax import main
main.run_main()
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/verify.py", "--config.stores=none"], "none"),
        (["--config=configs/prepare.py", "--config.data.pages=~/pages"], "home folder of '~' is"),
        (
            ["--config=configs/verify.py", "--config.stores=~x/s"],
            "home folder of '~x' is not known",
        ),
        (["--config=configs/verify.py", "--workdir=~/x"], "home folder of '~' is not known"),
    ],
)
def test_no_home_folder_and_an_unknown_user(words, message):
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_home_folder_is_put_in_place_of_its_sign(tmp_path):
    """Also where a shell leaves the sign as it is."""
    words = ["--config=configs/verify.py", "--config.stores=~/stores", "--workdir=~/run"]
    done = start(*words, HOME=str(tmp_path))
    assert str(tmp_path / "stores") in done.stderr
    assert not (ROOT / "~").exists()
