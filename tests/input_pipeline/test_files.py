"""Files are written whole or not at all, also when several processes write the same one."""

import multiprocessing
import threading
import time

import pytest

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.files import atomic_write, user_path

TEXTS = ("a" * 100_000, "b" * 50_000)


def write_often(path, text, start):
    start.wait(timeout=60)
    for _ in range(100):
        with atomic_write(path, "w") as file:
            file.write(text)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_writers_at_the_same_time_leave_one_whole_file(tmp_path, kind):
    path = tmp_path / "new" / "table.csv"
    spawn = multiprocessing.get_context("spawn")
    worker, barrier = {
        "threads": (threading.Thread, threading.Barrier),
        "processes": (spawn.Process, spawn.Barrier),
    }[kind]
    start = barrier(len(TEXTS))
    workers = [worker(target=write_often, args=(path, text, start)) for text in TEXTS]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert not path.exists() or path.read_text() in TEXTS
        time.sleep(0.001)
    for worker in workers:
        worker.join()
        assert getattr(worker, "exitcode", 0) == 0
    assert path.read_text() in TEXTS
    assert list(path.parent.iterdir()) == [path]


def test_one_of_two_files_that_are_open_at_once_is_complete(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_write(path, "w") as first, atomic_write(path, "w") as second:
        first.write(TEXTS[0])
        second.write(TEXTS[1])
    # The first one was closed last.
    assert path.read_text() == TEXTS[0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    path = tmp_path / "embeddings.npy"
    if old is not None:
        path.write_bytes(old)

    def fail():
        with atomic_write(path, "wb") as file:
            file.write(b"half of the new content")
            file.flush()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_text_is_utf8_with_its_own_line_breaks(tmp_path):
    with atomic_write(tmp_path / "a.csv", "w") as file:
        file.write("ä\r\nö\n")
    assert (tmp_path / "a.csv").read_bytes() == b"\xc3\xa4\r\n\xc3\xb6\n"


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(user_path("~/pages")) == "/home/me/pages"
    assert str(user_path("a/~b")) == "a/~b"
    unknown = "~no_such_user_17/pages"
    with pytest.raises(UserError, match="home folder of '~no_such_user_17' is not known") as caught:
        user_path(unknown)
    assert "\n" not in str(caught.value)
    # A folder may have such a name.
    (tmp_path / unknown).mkdir(parents=True)
    assert str(user_path(unknown)) == unknown
