"""What a folder of pages holds: folders of systems, links, other files, HEIC images."""

import logging
import os

import numpy as np
import pytest
from messages import message_of
from PIL import Image

from saghog_jax.configs.common import data_config
from saghog_jax.configs.regions import get_config as regions_stage
from saghog_jax.configs.regions import regions_config
from saghog_jax.input_pipeline import file_kinds
from saghog_jax.input_pipeline.errors import PageError
from saghog_jax.input_pipeline.pages import sources
from saghog_jax.input_pipeline.pages.image_names import list_files
from saghog_jax.input_pipeline.pages.images import load_page
from saghog_jax.input_pipeline.pages.sources import load_manifest
from saghog_jax.stages import run_stage

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def image(path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 50), 255, np.uint8)).save(path, kind)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def load(pages, **changes):
    data = data_config("")
    data.pages = str(pages)
    data.update(changes)
    return load_manifest(data)


def paths(folder):
    return [page.path for page in load(folder).pages]


SYSTEM = ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".AppleDouble", "Thumbs", "@Recycle"]


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_systems_are_no_pages(tmp_path, caplog, name):
    image(tmp_path / "p0.jpg")
    image(tmp_path / "vol" / "p1.jpg")
    for place in (tmp_path / name, tmp_path / "vol" / name / "p1.jpg"):
        image(place / "preview.jpg")
    with caplog.at_level(logging.WARNING):
        assert paths(tmp_path) == ["p0.jpg", "vol/p1.jpg"]
    expected = (
        f"2 folders of previews, deleted files or loops are left out: {name!r}, {'vol/' + name!r}"
    )
    # Hidden folders are never pages, so nothing is said about these.
    assert caplog.messages == ([] if name.startswith(".") else [expected])


def test_a_folder_that_is_given_is_read_whatever_its_name(tmp_path):
    image(tmp_path / "Thumbs" / "a.png")
    assert paths(tmp_path / "Thumbs") == ["a.png"]


def test_links_to_folders_are_followed_once(tmp_path, caplog):
    scans, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    image(scans / "b" / "p0.jpg")
    image(elsewhere / "sub" / "p1.jpg")
    links = {
        "a": scans / "b",  # listed already
        "vol1": elsewhere,
        "vol2": elsewhere,  # a second time
        "b/loop": scans,
        "b/above": tmp_path,
        "c": elsewhere / "sub",  # before vol1, so that its page is c/p1.jpg
    }
    for name, target in links.items():
        os.symlink(target, scans / name)
    os.symlink(scans / "vol1", elsewhere / "loop")
    image(elsewhere / "p2.jpg")
    with caplog.at_level(logging.WARNING):
        assert paths(scans) == ["b/p0.jpg", "c/p1.jpg", "vol1/p2.jpg"]
    (line,) = caplog.messages
    assert line == "1 folders of previews, deleted files or loops are left out: 'b/above'"


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    image(tmp_path / "a.png")
    for name in ("gone.png", "gone"):
        os.symlink(tmp_path / "nowhere", tmp_path / name)
    assert paths(tmp_path) == ["a.png", "gone.png"]
    assert list_files(tmp_path).others == ["gone"]


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".JIF", "JPEG"), (".jpx", "JPEG2000"), (".jpf", "JPEG2000")],
)
def test_further_suffixes(tmp_path, suffix, kind):
    image(tmp_path / f"a{suffix}", kind)
    assert paths(tmp_path) == [f"a{suffix}"]
    assert paths(tmp_path / f"a{suffix}") == [f"a{suffix}"]
    assert load_page(tmp_path / f"a{suffix}", None, 10**4).shape == (40, 50, 3)


def test_files_that_are_left_out_are_named(tmp_path, caplog):
    image(tmp_path / "a.png")
    touch(tmp_path, "notes.txt", "sub/scan.cr2", "Thumbs.db", ".DS_Store", "desktop.ini", "b.pdf")
    with caplog.at_level(logging.WARNING):
        assert paths(tmp_path) == ["a.png"]
    assert caplog.messages[0] == (
        "2 files are not images and are left out: 'notes.txt', 'sub/scan.cr2'"
    )
    assert caplog.messages[1].startswith("1 PDF files are left out, since the folder holds images")
    assert (
        "'b.pdf'; to read them, give a PDF or a folder of PDFs as data.pages"
        in (caplog.messages[1])
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data = data_config("")
        data.pages = str(tmp_path)
        load_manifest(data, tell=False)
    assert not caplog.messages


def test_regions_names_them_too(tmp_path, caplog):
    image(tmp_path / "scans" / "a.png")
    touch(tmp_path, "scans/notes.txt")
    config = regions_stage()
    config.data.pages, config.data.cache = str(tmp_path / "scans"), str(tmp_path / "cache")
    config.regions = regions_config("ink")
    config.regions.root, config.regions.workers = str(tmp_path / "masks"), 1
    with caplog.at_level(logging.WARNING):
        run_stage(config, tmp_path)
    assert "1 files are not images and are left out: 'notes.txt'" in caplog.messages


class TestHeic:
    @pytest.fixture
    def without(self, monkeypatch):
        """As if pillow-heif were not installed."""
        for module in (file_kinds, sources):
            monkeypatch.setattr(module, "can_read_heic", lambda: False)

    def test_the_remedy_is_told(self, tmp_path, caplog, without):
        image(tmp_path / "a.png")
        (tmp_path / "b.HEIC").write_bytes(HEIC)
        with caplog.at_level(logging.WARNING):
            assert paths(tmp_path) == ["a.png", "b.HEIC"]
        (line,) = caplog.messages
        assert line == (
            "1 HEIC images cannot be read: 'b.HEIC'; install the optional part for it "
            "(pip install 'saghog_jax[heic]')"
        )
        assert "is a HEIC image; install the optional part" in message_of(load, tmp_path / "b.HEIC")

    @pytest.mark.skipif(file_kinds.can_read_heic(), reason="pillow-heif is installed")
    def test_a_page_that_cannot_be_read_has_the_reason(self, tmp_path):
        (tmp_path / "b.jpg").write_bytes(HEIC)
        with pytest.raises(PageError, match=r"a HEIC image; install .* 'saghog_jax\[heic\]'"):
            load_page(tmp_path / "b.jpg", None, 10**4)

    @pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".hif"])
    def test_with_the_optional_part_it_is_a_page(self, tmp_path, suffix):
        pillow_heif = pytest.importorskip("pillow_heif")
        colours = np.zeros((64, 96, 3), np.uint8)
        colours[:, 48:] = 200, 40, 40
        pillow_heif.from_pillow(Image.fromarray(colours)).save(tmp_path / "b.heic", quality=95)
        (tmp_path / "b.heic").rename(tmp_path / f"b{suffix}")
        assert paths(tmp_path) == paths(tmp_path / f"b{suffix}") == [f"b{suffix}"]
        page = load_page(tmp_path / f"b{suffix}", None, 10**4)
        assert page.shape == (64, 96, 3)
        np.testing.assert_allclose(page[:, [8, 88]].astype(int), colours[:, [8, 88]], atol=6)
        with pytest.raises(PageError, match="96 x 64 pixels are more than data.max_pixels=100"):
            load_page(tmp_path / f"b{suffix}", None, 100)
