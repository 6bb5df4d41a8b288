import csv
import errno
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import ROOT, TESTS
from store_helpers import draw_page, fingerprint, sections, write_pages

from saghog_jax.input_pipeline.cutting.patches import Rule
from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.pages import fingerprint as page_fingerprint
from saghog_jax.input_pipeline.pages.sources import CONTENTS_CACHE
from saghog_jax.input_pipeline.processes.workers import run_jobs
from saghog_jax.input_pipeline.store import build, writer
from saghog_jax.input_pipeline.store.build import ensure_store
from saghog_jax.input_pipeline.store.dry_run import SurveyJob, inspect_page
from saghog_jax.input_pipeline.store.reader import Store
from saghog_jax.input_pipeline.store.stream import cut_at_scales
from saghog_jax.verify import verify_store

PAGES = 7


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Pages, and the store that one process built from them."""
    folder = tmp_path_factory.mktemp("built")
    pages = write_pages(folder / "pages", PAGES)
    return pages, ensure_store(*sections(pages, folder / "stores"), log=lambda _: None)


def quiet(*args):
    return ensure_store(*args, log=lambda _: None)


def test_every_page_is_in_the_store(built):
    pages, folder = built
    store = Store.open(folder)
    assert [page.path for page in store.manifest.pages] == [f"p{i:02d}.png" for i in range(PAGES)]
    counts = np.bincount(store.index["page"], minlength=PAGES)
    assert counts.min() > 0
    assert [page.extra["n_patches"] for page in store.manifest.pages] == [str(n) for n in counts]
    assert store.manifest.root == pages.parent
    assert store.skipped == []
    # The patch shows the page around the keypoint.
    page = cv2.imread(str(pages.parent / "p02.png"))[:, :, ::-1]
    inside = [
        (i, x, y)
        for i, (row, x, y) in enumerate(zip(*store.index.values(), strict=True))
        if row == 2 and 16 <= x < page.shape[1] - 16 and 16 <= y < page.shape[0] - 16
    ]
    assert inside
    for i, x, y in inside:
        cut = store.gather(np.array([i]))["patches"][0]
        np.testing.assert_array_equal(cut, page[y - 16 : y + 16, x - 16 : x + 16])


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_processes_does_not_change_a_byte(built, tmp_path, workers):
    pages, folder = built
    data, section = sections(pages, tmp_path)
    section.workers = workers
    assert fingerprint(quiet(data, section)) == fingerprint(folder)


def test_a_whole_store_is_not_built_again(built, monkeypatch):
    pages, folder = built
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    assert quiet(*sections(pages, folder.parent)) == folder


def test_touched_and_moved_pages_are_the_same_store(built, tmp_path):
    _, folder = built
    pages = write_pages(tmp_path / "moved", PAGES)
    os.utime(pages.parent / "p00.png", (1, 1))
    assert quiet(*sections(pages, tmp_path)).name == folder.name


def test_other_file_names_are_the_same_store(built, tmp_path):
    _, folder = built
    pages = write_pages(tmp_path / "pages", PAGES)
    table = pages.read_text().replace("p0", "scans/IMG")
    (tmp_path / "pages" / "scans").mkdir()
    for image in pages.parent.glob("*.png"):
        image.rename(pages.parent / "scans" / image.name.replace("p0", "IMG"))
    pages.write_text(table)
    assert "scans/IMG3.png" in table
    renamed = quiet(*sections(pages, tmp_path / "stores"))
    assert renamed.name == folder.name
    assert [page.path for page in Store.open(renamed).manifest.pages][3] == "scans/IMG3.png"
    for one in (renamed, folder):
        assert list(verify_store(one)) == []
    # Two files that cannot be read are two pages.
    stores = set()
    for name in ("a", "b"):
        pages.write_text(f"{table}{name}.png,w0,7\n")
        stores.add(quiet(*sections(pages, tmp_path)).name)
    assert len(stores) == 2


def test_whatever_changes_the_patches_makes_another_store(built, tmp_path):
    pages, folder = built
    names = {folder.name}

    def add(pages=pages, **fields):
        data, section = sections(pages, tmp_path)
        for name, value in fields.items():
            owner = data if name in data else section
            owner[name] = value
        names.add(quiet(data, section).name)

    add(max_patches_per_page=19)
    add(min_ink=0.1)
    add(pages_per_shard=3)
    add(max_pixels=10**6)
    edited = write_pages(tmp_path / "edited", PAGES)
    cv2.imwrite(str(edited.parent / "p03.png"), draw_page(99))
    add(edited)
    relabelled = write_pages(tmp_path / "relabelled", PAGES, writers=2)
    add(relabelled)
    assert len(names) == 7


def test_a_page_is_resized_by_the_factor_of_its_row_and_that_of_the_store(tmp_path):
    pages = write_pages(tmp_path / "pages", 2)
    lines = pages.read_text().splitlines()
    scaled = pages.with_name("scaled.csv")
    scaled.write_text("\n".join([lines[0] + ",scale", lines[1] + ",3", lines[2] + ","]) + "\n")
    data, section = sections(scaled, tmp_path / "stores")
    section.scale = 0.5
    half = Rule.from_config(section)
    actual = Store.open(quiet(data, section))
    for row, factor in enumerate((1.5, 0.5)):
        data, section = sections(pages, tmp_path / f"{factor}")
        section.scale = factor
        expected = Store.open(quiet(data, section))
        a, b = (np.flatnonzero(store.index["page"] == row) for store in (actual, expected))
        assert len(a) > 3
        for key in ("patches", "ink"):
            np.testing.assert_array_equal(actual.gather(a)[key], expected.gather(b)[key])
        # Embedding and the dry run resize the page by the same factor.
        page = actual.manifest.pages[row]
        (cut,) = cut_at_scales(pages.parent, page, half, 10**8, row)
        np.testing.assert_array_equal(cut.x, expected.index["x"][b])
        job = SurveyJob(row, pages.parent, page, 10**8, (half,), None)
        assert inspect_page(job).n_patches == (len(b),)


def test_an_edited_page_is_noticed_by_the_same_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(page_fingerprint, "SETTLED_NS", -(10**12))
    pages = write_pages(tmp_path / "pages", 3)
    first = quiet(*sections(pages, tmp_path))
    assert len(json.loads((tmp_path / CONTENTS_CACHE).read_text())) == 3
    cv2.imwrite(str(pages.parent / "p01.png"), draw_page(50))
    assert quiet(*sections(pages, tmp_path)) != first


def spoil(pages: Path) -> None:
    """Makes one page truncated, one blank, one no image, and one missing."""
    jpeg = cv2.imencode(".jpg", draw_page(3))[1].tobytes()
    names = ["p01.png", "p02.png", "p04.png", "p05.png"]
    (pages.parent / names[0]).write_bytes(jpeg[: len(jpeg) // 2])
    cv2.imwrite(str(pages.parent / names[1]), np.full((90, 90, 3), 240, np.uint8))
    (pages.parent / names[2]).write_text("no image")
    (pages.parent / names[3]).unlink()


def test_bad_pages_are_listed_and_no_good_page_is_lost(built, tmp_path):
    good = Store.open(built[1])
    pages = write_pages(tmp_path / "pages", PAGES)
    spoil(pages)
    lines = []
    store = Store.open(ensure_store(*sections(pages, tmp_path), log=lines.append))
    assert [page for page, _ in store.skipped] == ["p01.png", "p02.png", "p04.png", "p05.png"]
    reasons = [reason for _, reason in store.skipped]
    assert "damaged" in reasons[0]
    assert "blank" in reasons[1]
    assert "not an image" in reasons[2]
    assert "no such file" in reasons[3].lower()
    assert lines[-1].startswith("4 pages skipped: p01.png: damaged")
    kept = np.flatnonzero(np.isin(good.index["page"], [0, 3, 6]))
    np.testing.assert_array_equal(
        store.gather(np.arange(len(store)))["patches"], good.gather(kept)["patches"]
    )
    with (store.path / "manifest.csv").open(newline="") as file:
        statuses = [row["status"] for row in csv.DictReader(file)]
    assert statuses == ["ok", "unreadable", "empty", "ok", "unreadable", "unreadable", "ok"]


def test_a_page_with_few_patches_gives_those(tmp_path):
    pages = write_pages(tmp_path / "pages", 2)
    cv2.imwrite(str(pages.parent / "p00.png"), draw_page(0, size=(44, 60)))
    store = Store.open(quiet(*sections(pages, tmp_path)))
    few, many = np.bincount(store.index["page"])
    assert 0 < few < many == 20


def test_no_usable_page_is_an_error_and_leaves_no_store(tmp_path):
    pages = write_pages(tmp_path / "pages", 3)
    for i in range(3):
        (pages.parent / f"p{i:02d}.png").write_text("no image")
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the 3 pages gave a patch.*p00\.png: not an"):
            quiet(*sections(pages, tmp_path))
    assert not list(tmp_path.glob("pretrain-*"))


def test_a_full_disk_says_so_and_the_build_goes_on_later(built, tmp_path, monkeypatch):
    pages, folder = built
    written = []

    def full(path, array):
        written.append(path)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_npy(path, array)

    write_npy = writer._write_npy
    monkeypatch.setattr(writer, "_write_npy", full)
    with pytest.raises(UserError, match=r"No space left on device; [12] of 7 pages are") as error:
        quiet(*sections(pages, tmp_path))
    assert "\n" not in str(error.value)
    (half,) = tmp_path.glob("pretrain-*")
    assert [path.name for path in half.iterdir()] == ["shards"]
    with pytest.raises(UserError, match="unfinished"):
        Store.open(half)
    monkeypatch.setattr(writer, "_write_npy", write_npy)
    lines = []
    again = ensure_store(*sections(pages, tmp_path), log=lines.append)
    assert " of them are done already" in lines[0]
    assert fingerprint(again) == fingerprint(folder)


def test_a_full_disk_at_the_last_file(built, tmp_path, monkeypatch):
    pages, folder = built
    replace = os.replace

    def full(source, target):
        if Path(target).name == "store.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*store\.json: No space left"):
        quiet(*sections(pages, tmp_path))
    monkeypatch.setattr(os, "replace", replace)
    assert fingerprint(quiet(*sections(pages, tmp_path))) == fingerprint(folder)


def test_shards_cut_by_other_libraries_are_cut_again(built, tmp_path, monkeypatch):
    pages, folder = built
    monkeypatch.setattr(writer, "version", lambda name: "0.0.1")
    monkeypatch.setattr(build, "finish_store", lambda *_: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(UserError):
        quiet(*sections(pages, tmp_path))
    monkeypatch.undo()
    lines = []
    again = ensure_store(*sections(pages, tmp_path), log=lines.append)
    assert "already" not in lines[0]
    assert fingerprint(again) == fingerprint(folder)


# Tests that a shell starts in the background ignore Ctrl+C, and so would their child processes.
BUILDER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [{project!r}, {tests!r}]
from store_helpers import sections
from saghog_jax.input_pipeline.store.build import ensure_store
data, store = sections({pages!r}, {root!r})
store.workers, store.pages_per_shard = {workers}, 1
ensure_store(data, store)
"""


def start_builder(pages, root, workers):
    """A script without a main guard that builds a store, in a process group of its own."""
    tests = TESTS
    root.mkdir(exist_ok=True)
    script = root / "build_it.py"
    script.write_text(
        BUILDER.format(
            project=str(tests.parent),
            tests=str(tests),
            pages=str(pages),
            root=str(root),
            workers=workers,
        )
    )
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def whole_shards(root):
    return len(list(root.glob("pretrain-*/shards/*/shard.json")))


def test_a_killed_build_resumes_to_the_same_bytes(tmp_path):
    pages = write_pages(tmp_path / "pages", 40)
    data, section = sections(pages, tmp_path / "straight")
    section.pages_per_shard = 1
    straight = quiet(data, section)
    root = tmp_path / "killed"
    rng = np.random.default_rng()
    for kill in range(2):
        builder = start_builder(pages, root, workers=2)
        before = whole_shards(root)
        while whole_shards(root) < min(before + 3, 39) and builder.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        os.killpg(builder.pid, signal.SIGKILL)
        builder.communicate()
        assert 0 < whole_shards(root) < 40, f"kill {kill} came too late to be a test"
        assert not list(root.glob("pretrain-*/store.json"))
    section.root = str(root)
    lines = []
    resumed = ensure_store(data, section, log=lines.append)
    assert "of them are done already" in lines[0]
    assert fingerprint(resumed) == fingerprint(straight)


@pytest.mark.slow
def test_two_builders_at_once_make_one_store(tmp_path):
    pages = write_pages(tmp_path / "pages", 12)
    data, section = sections(pages, tmp_path / "alone")
    section.pages_per_shard = 1
    alone = quiet(data, section)
    builders = [start_builder(pages, tmp_path / "both", workers=1) for _ in range(2)]
    for builder in builders:
        output, _ = builder.communicate(timeout=120)
        assert builder.returncode == 0, output
    (both,) = (tmp_path / "both").glob("pretrain-*")
    assert fingerprint(both) == fingerprint(alone)


@pytest.mark.slow
def test_workers_die_with_their_parent(tmp_path):
    pages = write_pages(tmp_path / "pages", 40)
    builder = start_builder(pages, tmp_path, workers=2)
    while whole_shards(tmp_path) < 2:
        assert builder.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{builder.pid}/task/{builder.pid}/children").read_text().split()
    assert len(children) >= 2
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_is_a_readable_error(tmp_path):
    pages = write_pages(tmp_path / "pages", 40)
    builder = start_builder(pages, tmp_path, workers=2)
    while whole_shards(tmp_path) < 2:
        time.sleep(0.01)
    for child in Path(f"/proc/{builder.pid}/task/{builder.pid}/children").read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
            break
    output, _ = builder.communicate(timeout=60)
    assert "UserError: a worker process was killed" in output
    assert "of 40 pages are kept, the same command continues from there" in output


def modules_after(imports: str) -> set[str]:
    code = f"{imports}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def above_input_pipeline(modules) -> set[str]:
    """Modules of the other rooms of saghog_jax."""
    rooms = {name.split(".")[1] for name in modules if name.startswith("saghog_jax.")}
    return rooms - {"input_pipeline", "configs"}


def test_input_pipeline_loads_neither_jax_nor_tensorflow():
    names = [
        ".".join(("saghog_jax.input_pipeline", *path.relative_to(root).with_suffix("").parts))
        for root in [ROOT / "input_pipeline"]
        for path in root.rglob("[a-z]*.py")
    ]
    loaded = modules_after("import " + ", ".join(names))
    assert {
        "saghog_jax.input_pipeline.store.build",
        "saghog_jax.input_pipeline.batches.loader",
        "cv2",
    } <= loaded
    assert not {"jax", "jaxlib", "flax", "tensorflow"} & loaded
    assert not above_input_pipeline(loaded)


def test_workers_do_not_load_the_main_program_or_jax():
    """Spawned processes load the main program by default, which is pytest with jax here."""
    importlib.import_module("jax")
    jobs = ["list(__import__('sys').modules)"] * 2
    for loaded in run_jobs(eval, jobs, workers=2):
        assert "cv2" in loaded
        assert not {"jax", "_pytest"} & set(loaded)
        assert not above_input_pipeline(loaded)
    assert multiprocessing.active_children() == []


def test_a_root_that_is_a_file(built, tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match=r"cannot write in the folder .*root/pretrain-"):
        quiet(*sections(built[0], tmp_path / "root"))


@pytest.mark.slow
def test_ctrl_c_ends_everything_at_once(tmp_path):
    pages = write_pages(tmp_path / "pages", 40)
    builder = start_builder(pages, tmp_path, workers=2)
    while whole_shards(tmp_path) < 2:
        time.sleep(0.01)
    os.killpg(builder.pid, signal.SIGINT)
    output, _ = builder.communicate(timeout=60)
    assert output.count("Traceback") == 1
    assert "KeyboardInterrupt" in output
    (half,) = tmp_path.glob("pretrain-*")
    assert [path.name for path in half.iterdir()] == ["shards"]


def test_odd_names_survive(tmp_path):
    names = ["a b.png", 'quo"te.png', "com,ma;.png", "new\nline.png", "写本 ünï.png", "#1.png"]
    (tmp_path / "pages").mkdir()
    for i, name in enumerate(names):
        cv2.imwrite(str(tmp_path / "pages" / "plain.png"), draw_page(i))
        (tmp_path / "pages" / "plain.png").rename(tmp_path / "pages" / name)
    (tmp_path / "pages" / "em\npty.png").write_bytes(b"")
    lines = []
    store = Store.open(
        ensure_store(*sections(tmp_path / "pages", tmp_path / "stores"), log=lines.append)
    )
    assert [page.path for page in store.manifest.pages] == sorted([*names, "em\npty.png"])
    assert [page for page, _ in store.skipped] == ["em\npty.png"]
    assert all("\n" not in line for line in lines)
