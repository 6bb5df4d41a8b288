import hashlib
import json
import os
import shutil
import time

import pytest

from saghog_jax.input_pipeline.pages import fingerprint
from saghog_jax.input_pipeline.pages.fingerprint import fingerprints, folder_fingerprint


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Two files that were modified long ago; files of this moment are trusted."""
    monkeypatch.setattr(fingerprint, "SETTLED_NS", -(10**12))
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


def change_in_place(file, text):
    """Changes a file but keeps its size, modification time and inode, as `exiftool -P` can."""
    before = file.stat()
    with file.open("r+") as opened:
        opened.write(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert [getattr(after, name) for name in ("st_size", "st_mtime_ns", "st_ino")] == [
        getattr(before, name) for name in ("st_size", "st_mtime_ns", "st_ino")
    ]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_change_that_keeps_size_and_time_is_seen(pages):
    assert fingerprints(pages, ["a"], pages / "cache") == {"a": digest("a")}
    time.sleep(0.02)  # Longer than the tick of the file system's clock.
    change_in_place(pages / "a", "c")
    assert fingerprints(pages, ["a"], pages / "cache") == {"a": digest("c")}


def test_a_change_of_ready_cut_patches_that_keeps_size_and_time_is_seen(pages):
    whole = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest())
    assert folder_fingerprint(pages, ["a", "b"], pages / "cache") == whole.hexdigest()
    time.sleep(0.02)
    change_in_place(pages / "b", "c")
    whole = hashlib.sha256(hashlib.sha256(b"a").digest() + hashlib.sha256(b"c").digest())
    assert folder_fingerprint(pages, ["a", "b"], pages / "cache") == whole.hexdigest()


def test_another_file_in_its_place_is_seen_by_its_inode(pages, monkeypatch):
    # As on a file system without change times.
    stamp = fingerprint._stamp
    monkeypatch.setattr(fingerprint, "_stamp", lambda file: [*stamp(file)[:2], 0, stamp(file)[3]])
    assert fingerprints(pages, ["a"], pages / "cache") == {"a": digest("a")}
    shutil.copy2(pages / "a", pages / "other")
    (pages / "other").write_text("c")
    os.utime(pages / "other", (1e9, 1e9))
    (pages / "other").replace(pages / "a")
    assert fingerprints(pages, ["a"], pages / "cache") == {"a": digest("c")}


def test_files_of_this_moment_are_not_trusted(pages, monkeypatch):
    monkeypatch.undo()
    # The file has just been written, whatever its modification time says.
    fingerprints(pages, ["a"], pages / "cache")
    assert not (pages / "cache").exists()
    # Nor is a file with a modification time in the future.
    monkeypatch.setattr(fingerprint, "SETTLED_NS", -(10**12))
    ahead = time.time() + 10**6
    os.utime(pages / "a", (ahead, ahead))
    fingerprints(pages, ["a"], pages / "cache")
    assert not (pages / "cache").exists()


def test_a_cache_of_an_older_version_is_not_trusted(pages):
    name, old = str(pages / "a"), [1, 10**18, "0" * 64]
    (pages / "cache").write_text(json.dumps({name: old}))
    assert fingerprints(pages, ["a"], pages / "cache") == {"a": digest("a")}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"PAGE": 5}', '{"PAGE": []}'])
def test_a_damaged_cache_costs_nothing_but_time(pages, content):
    first = fingerprints(pages, ["a"], pages / "cache")
    (pages / "cache").write_text(content.replace("PAGE", str(pages / "a")))
    assert fingerprints(pages, ["a"], pages / "cache") == first


def test_a_cache_that_cannot_be_written(pages):
    assert fingerprints(pages, ["a"], pages / "a" / "cache")["a"]
