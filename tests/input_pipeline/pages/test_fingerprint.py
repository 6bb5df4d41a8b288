import hashlib
import os
import time

import pytest

from saghog_jax.input_pipeline.pages import fingerprint
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints


@pytest.fixture
def pages(tmp_path):
    """Two files that were modified long ago."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1e9, 1e9))
    return tmp_path


def test_they_are_checksums_and_missing_files_have_none(pages):
    digests = fingerprints(pages, ["a", "b", "c", "a"], pages / "cache")
    expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in "ab"}
    assert digests == {**expected, "c": ""}
    assert fingerprints(pages, ["a", "b"], pages / "cache") == expected


def test_unchanged_files_are_not_read_again(pages, monkeypatch):
    first = fingerprints(pages, ["a", "b"], pages / "cache")
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert fingerprints(pages, ["a", "b"], pages / "cache") == first


def test_changed_files_are_read_again(pages):
    first = fingerprints(pages, ["a", "b"], pages / "cache")
    (pages / "a").write_text("c")
    os.utime(pages / "a", (1e9 + 1, 1e9 + 1))
    second = fingerprints(pages, ["a", "b"], pages / "cache")
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_files_of_this_moment_are_not_trusted(pages):
    (pages / "a").write_text("x")
    stamp = time.time_ns()
    os.utime(pages / "a", ns=(stamp, stamp))
    first = fingerprints(pages, ["a"], pages / "cache")
    (pages / "a").write_text("y")
    os.utime(pages / "a", ns=(stamp, stamp))
    assert fingerprints(pages, ["a"], pages / "cache") != first


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_cache_costs_nothing_but_time(pages, content):
    first = fingerprints(pages, ["a"], pages / "cache")
    (pages / "cache").write_text(content)
    assert fingerprints(pages, ["a"], pages / "cache") == first


def test_a_cache_that_cannot_be_written(pages):
    assert fingerprints(pages, ["a"], pages / "a" / "cache")["a"]
