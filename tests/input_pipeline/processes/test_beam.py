"""Apache Beam builds the same store as a pool of processes; skipped if Beam is not installed."""

import importlib.util
import sys

import pytest
from store_helpers import fingerprint, sections, write_pages

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.processes.beam import run_beam_jobs
from saghog_jax.input_pipeline.store import writer
from saghog_jax.input_pipeline.store.build import ensure_store

RUNNERS = {
    "in this process": "--runner=DirectRunner",
    "2 processes": (
        "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"
    ),
}
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="the extra [beam] is not installed"
)
# Warnings of Beam about optional packages and about its use of protobuf.
quiet_beam = pytest.mark.filterwarnings("ignore")


def build(pages, root, beam=""):
    return ensure_store(*sections(pages, root), log=lambda _: None, beam=beam)


@needs_beam
@quiet_beam
@pytest.mark.parametrize("runner", RUNNERS)
def test_beam_makes_the_same_bytes(tmp_path, runner):
    pages = write_pages(tmp_path / "pages", 7)
    (pages.parent / "p03.png").write_bytes(b"")
    pool = build(pages, tmp_path / "pool")
    assert fingerprint(build(pages, tmp_path / "beam", RUNNERS[runner])) == fingerprint(pool)


@needs_beam
@quiet_beam
def test_a_failed_pipeline_goes_on_with_the_pool(tmp_path, monkeypatch):
    pages = write_pages(tmp_path / "pages", 7)
    write_npy, written = writer._write_npy, []

    def full(path, array):
        written.append(path)
        if len(written) > 7:
            raise OSError(28, "No space left on device")
        return write_npy(path, array)

    monkeypatch.setattr(writer, "_write_npy", full)
    with pytest.raises(UserError, match="No space left on device"):
        build(pages, tmp_path / "beam", RUNNERS["in this process"])
    monkeypatch.undo()
    expected = fingerprint(build(pages, tmp_path / "pool"))
    assert fingerprint(build(pages, tmp_path / "beam")) == expected


def test_without_beam_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'"):
        list(run_beam_jobs(print, [1], "--runner=DirectRunner"))
