"""The short form of the command line is the long form with fewer words."""

import subprocess
import sys

import pytest
from places import ROOT

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.short_form import long_form


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("scans a", "--config=configs/scans.py --config.data.pages=a"),
        (
            "scans a/b.pdf scale=2.0 --open --workdir=w",
            "--config=configs/scans.py --config.data.pages=a/b.pdf --config.scale=2.0 "
            "--config.open=True --workdir=w",
        ),
        (
            "search new a-saghog top_k=3",
            "--config=configs/scans.py --config.data.pages=new --config.gallery=a-saghog "
            "--config.top_k=3",
        ),
        ("search queries=a gallery=b", "--config=configs/search.py --config.queries=a "
         "--config.gallery=b"),
        (
            "embed:small,regions=ink checkpoint=runs/x",
            "--config=configs/embed.py:small,regions=ink --config.checkpoint=runs/x",
        ),
        ("retrieve", "--config=configs/retrieve.py"),
        ("embed --help", "--config=configs/embed.py --help"),
    ],
)  # fmt: skip
def test_the_long_form_of_a_command(short, long):
    assert long_form(short.split()) == long.split()


@pytest.mark.parametrize(
    ("short", "message"),
    [
        ("embde", "unknown stage 'embde'.*did you mean 'embed'"),
        ("scans a b", "unexpected argument 'b'; fields are set as FIELD=VALUE"),
        ("retrieve a", "unexpected argument 'a'"),
        ("search a", "takes new pages and a work folder, not \\['a'\\]"),
    ],
)
def test_mistakes(short, message):
    with pytest.raises(UserError, match=message):
        long_form(short.split())


def start(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "saghog_jax", *words], cwd=cwd, capture_output=True, text=True
    )


def test_help_is_a_screen_of_plain_words(tmp_path):
    for words, expected in (
        (["--help"], "saghog scans FOLDER"),
        (["help"], "saghog STAGE FIELD=VALUE"),
        (["scans", "--help"], "FOLDER-saghog/report.html"),
        (["search", "--help"], "saghog search NEW FOLDER-saghog"),
    ):
        done = start(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
        assert len(done.stdout.splitlines()) <= 25
    done = start(cwd=tmp_path)
    assert done.returncode == 2
    assert "saghog scans FOLDER" in done.stderr


def test_a_stage_starts_from_any_folder(tmp_path):
    """The config is that of the installation, but for a file of the same name in the folder."""
    done = start("verify", "stores=none", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "none" in done.stderr
    assert "fields of" in start("embed", "--help", cwd=tmp_path).stdout
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/verify.py").write_text("raise ValueError('my own file')")
    assert "my own file" in start("verify", cwd=tmp_path).stderr


def test_a_mistake_is_one_line(tmp_path):
    for words in (["embde"], ["scans", "nowhere"], ["scans", "a", "b"]):
        done = start(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_version(tmp_path):
    version = next(line for line in (ROOT / "setup.cfg").read_text().splitlines()
                   if line.startswith("version")).split()[-1]  # fmt: skip
    assert start("--version", cwd=tmp_path).stdout == version + "\n"
