"""The table of pages, from folders and CSVs, and its error messages."""

import os
from pathlib import Path

import numpy as np
import pytest
from messages import message_of
from PIL import Image

from saghog_jax.configs.common import data_config
from saghog_jax.input_pipeline.pages import sources
from saghog_jax.input_pipeline.pages.manifest import Manifest, Page, read_csv
from saghog_jax.input_pipeline.pages.sources import load_manifest, scan_folder

ODD_NAMES = [
    "a b.png",
    'it\'s "so".png',
    "line\nbreak\r.png",
    "手稿/Ω ñ.png",
    "a,b;c\td.png",
    "#1.png",
]


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), 255, np.uint8)).save(path)


def _images(folder, *names):
    for name in names:
        _image(folder / name)
    return folder


def _csv(folder, text, encoding="utf-8"):
    path = folder / "pages.csv"
    path.write_bytes(text.encode(encoding))
    return path


def _load(pages, split="", **changes):
    data = data_config(split)
    data.pages = str(pages)
    data.update(changes)
    return load_manifest(data)


# Folders


def test_a_folder_without_expressions(tmp_path):
    _images(tmp_path, "b.png", "a.JPG", "sub/c.tif", "sub/.hidden.png", ".cache/d.png")
    (tmp_path / "notes.txt").write_text("no page")
    manifest = scan_folder(tmp_path, "", "")
    assert manifest.pages == (
        Page("a.JPG", "", "a", "", None, {}),
        Page("b.png", "", "b", "", None, {}),
        Page("sub/c.tif", "", "c", "", None, {}),
    )
    assert manifest.root == tmp_path
    assert manifest.columns == ()
    assert manifest.writers == []


def test_expressions_find_writer_and_page(tmp_path):
    _images(tmp_path, "w1-p1.png", "w1-p2.png", "w2-p1.png")
    manifest = scan_folder(tmp_path, r"^(w\d)", r"-(p\d)")
    assert [(p.writer, p.page) for p in manifest.pages] == [
        ("w1", "p1"),
        ("w1", "p2"),
        ("w2", "p1"),
    ]
    assert manifest.writers == ["w1", "w2"]


def test_named_groups_become_columns(tmp_path):
    _images(tmp_path, "train/7_alice_1.png", "test/9_bob_2.png")
    manifest = scan_folder(
        tmp_path, r"(?P<split>\w+)/(?P<cluster>\d+)_(?P<writer>[a-z]+)", r"_(?P<page>\d)\.png"
    )
    assert manifest.columns == ("cluster",)
    assert manifest.pages == (
        Page("test/9_bob_2.png", "bob", "2", "test", None, {"cluster": "9"}),
        Page("train/7_alice_1.png", "alice", "1", "train", None, {"cluster": "7"}),
    )
    assert manifest.select("train").pages == manifest.pages[1:]


def test_one_expression_may_give_writer_and_page(tmp_path):
    _images(tmp_path, "alice_1.png")
    manifest = scan_folder(tmp_path, r"(?P<writer>[a-z]+)_(?P<page>\d)", "")
    assert manifest.pages[0][:3] == ("alice_1.png", "alice", "1")


def test_an_optional_group_leaves_the_writer_empty(tmp_path):
    _images(tmp_path, "w1.png", "unknown.png")
    manifest = scan_folder(tmp_path, r"^(w\d)?", "")
    assert [page.writer for page in manifest.pages] == ["", "w1"]
    assert manifest.writers == ["w1"]


def test_an_expression_that_does_not_match_names_the_files(tmp_path):
    _images(tmp_path, "w1.png", "x.png", "y.png")
    message = message_of(scan_folder, tmp_path, r"^w(\d)", "")
    assert "data.writer_regex='^w(\\\\d)' does not match 2 of 3 images" in message
    assert "'x.png', 'y.png'" in message


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(a", "is not a regular expression"),
        ("[a-z]+", "has no group"),
        ("(?P<path>a)", "cannot be named 'path'"),
        ("(?P<x0>a)", "cannot be named 'x0'"),
    ],
)
def test_bad_expressions(tmp_path, regex, message):
    _images(tmp_path, "a.png")
    for label in ("writer", "page"):
        text = message_of(_load, tmp_path, **{f"{label}_regex": regex})
        assert message in text
        assert f"data.{label}_regex" in text


def test_folders_that_hold_nothing(tmp_path):
    assert "holds no image, known: .avif .bmp" in message_of(scan_folder, tmp_path, "", "")
    (tmp_path / "a.txt").touch()
    message = message_of(_load, tmp_path)
    assert "holds no image" in message
    assert message.endswith("; it holds 1 other files: 'a.txt'")
    assert "no such folder or file" in message_of(_load, tmp_path / "gone")
    assert "no such folder" in message_of(scan_folder, tmp_path / "gone", "", "")


def test_a_folder_below_that_cannot_be_read(tmp_path, monkeypatch):
    _images(tmp_path, "a.png", "sub/b.png")
    real = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "sub: Permission denied" in message_of(scan_folder, tmp_path, "", "")


def test_odd_file_names_survive_the_way_through_a_csv(tmp_path):
    _images(tmp_path, *ODD_NAMES)
    manifest = scan_folder(tmp_path, r"(.)[^/]*$", "")
    assert {page.path for page in manifest.pages} == set(ODD_NAMES)
    manifest.write(tmp_path / "out.csv")
    assert read_csv(tmp_path / "out.csv") == manifest


def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    _image(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert r"'\udcff.png' is not UTF-8" in message_of(scan_folder, tmp_path, "", "")


def test_a_folder_with_a_manifest_stands_for_it(tmp_path):
    _images(tmp_path, "a.png", "b.png")
    (tmp_path / "manifest.csv").write_text("path,writer\na.png,alice\n")
    assert [page.writer for page in _load(tmp_path).pages] == ["alice"]
    assert [page.writer for page in _load(tmp_path, writer_regex="(.)").pages] == ["a", "b"]


# CSVs


def test_a_full_manifest(tmp_path):
    path = _csv(
        tmp_path,
        "path,writer,page,split,x0,y0,x1,y1,sheet\n"
        "a.png,alice,1,train,0,1,20,31,s1\n"
        "a.png,alice,2,train,20,1,40,31,s1\n"
        "sub/b.png,,9,test,,,,,\n",
    )
    manifest = read_csv(path)
    assert manifest.root == tmp_path
    assert manifest.columns == ("sheet",)
    assert manifest.pages == (
        Page("a.png", "alice", "1", "train", (0, 1, 20, 31), {"sheet": "s1"}),
        Page("a.png", "alice", "2", "train", (20, 1, 40, 31), {"sheet": "s1"}),
        Page("sub/b.png", "", "9", "test", None, {"sheet": ""}),
    )
    assert [page.page_id for page in manifest.pages] == [
        "a.png#0,1,20,31",
        "a.png#20,1,40,31",
        "sub/b.png",
    ]
    assert manifest.writers == ["alice"]
    assert len(manifest) == 3
    manifest.write(tmp_path / "again.csv")
    assert read_csv(tmp_path / "again.csv") == manifest


def test_only_the_path_is_needed(tmp_path):
    manifest = read_csv(_csv(tmp_path, "path\nb.png\n./sub//a.1.png\n"))
    assert [page[:5] for page in manifest.pages] == [
        ("b.png", "", "b", "", None),
        ("sub/a.1.png", "", "a.1", "", None),
    ]


def test_the_published_form(tmp_path):
    manifest = read_csv(_csv(tmp_path, "imgs,writer,page,cluster\na.png,3,12,77\n"))
    assert manifest.pages == (Page("a.png", "3", "12", "", None, {"cluster": "77"}),)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dialects(tmp_path, separator, end, encoding):
    lines = ["path; writer ;page", '"a;b.png";Ägidius;1', ";;", "手.png; eve ;2", ""]
    text = end.join(lines).replace(";", separator)
    manifest = read_csv(_csv(tmp_path, text, encoding))
    assert [page[:3] for page in manifest.pages] == [
        (f"a{separator}b.png", "Ägidius", "1"),
        ("手.png", "eve", "2"),
    ]


def test_absolute_paths_become_relative(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    manifest = read_csv(_csv(folder, f"path\n{tmp_path}/pages/a.png\n"))
    assert manifest.pages[0].path == "../pages/a.png"


def test_paths_relative_to_another_folder(tmp_path):
    manifest = read_csv(_csv(tmp_path, "path\na.png\n"), root=Path("/data"))
    assert manifest.root == Path("/data")
    assert manifest.pages[0].path == "a.png"


def test_a_missing_file_among_others_is_left_to_the_reader(tmp_path):
    _image(tmp_path / "b.png")
    assert len(_load(_csv(tmp_path, "path\na.png\nb.png\n"))) == 2


def test_a_manifest_of_missing_files_is_a_mistake(tmp_path):
    message = message_of(_load, _csv(tmp_path, "path\na.png\nb.png\n"))
    assert "none of the 2 files listed exists" in message
    assert str(tmp_path / "a.png") in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,writer\na.png,x\n", "no column `path`, only 'file', 'writer'"),
        ("", "is empty"),
        ("path,writer\n", "lists no page"),
        ("path,path\na,b\n", "the column 'path' twice"),
        ("path,x0,y0\na.png,1,2\n", "needs all of the columns x0, y0, x1, y1"),
        ("path,writer\na.png\n", "line 2: 1 cells under a header of 2"),
        ("path,writer\na,b.png,x\n", "line 2: 3 cells under a header of 2"),
        ("path,writer\n,x\n", "line 2: the cell `path` is empty"),
        ('path,writer\n"a.png,x\n', "line 2: unexpected end of data"),
        ("path,writer\na.png,x\na.png,x\n", "line 3: 'a.png' is listed already in line 2"),
        ("path,writer\na.png,x\n./a.png,y\n", "each page must be listed once, with one writer"),
        ("path,x0,y0,x1,y1\na,1,2,3,4\na,1,2,3,4\n", "line 3: 'a#1,2,3,4' is listed already"),
        ("path,x0,y0,x1,y1\na,1,2,3,x\n", "line 2: the box 1,2,3,x is not four whole numbers"),
        ("path,x0,y0,x1,y1\na,1,2,3.5,9\n", "not four whole numbers"),
        ("path,x0,y0,x1,y1\na,1,2,3,\n", "not four whole numbers"),
        ("path,x0,y0,x1,y1\na,5,2,5,9\n", "must satisfy 0 <= x0 < x1 and 0 <= y0 < y1"),
        ("path,x0,y0,x1,y1\na,-1,2,5,9\n", "must satisfy"),
        ("path,scale\na,1\nb,1:50\n", "line 3: the scale '1:50' is not a positive number"),
        ("path,scale\na,0\n", "the scale '0' is not a positive number"),
        ("path,scale\na,-2\n", "the scale '-2' is no"),
        ("path,scale\na,nan\n", "the scale 'nan' is no"),
        ("path,scale\na,inf\n", "the scale 'inf' is no"),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    path = _csv(tmp_path, text)
    given = message_of(read_csv, path)
    assert message in given
    assert str(path) in given


def test_a_column_of_factors(tmp_path):
    manifest = read_csv(_csv(tmp_path, "path,scale\na.png,1.5\nb.png,\n"))
    assert [page.scale for page in manifest.pages] == [1.5, 1.0]
    assert manifest.columns == ("scale",)
    assert read_csv(_csv(tmp_path, "path\na.png\n")).pages[0].scale == 1


def test_one_image_is_one_page(tmp_path):
    _image(tmp_path / "some page.JPG")
    (page,) = _load(tmp_path / "some page.JPG").pages
    assert (page.path, page.page, page.writer) == ("some page.JPG", "some page", "")
    message = message_of(_load, tmp_path / "some page.JPG", writer_regex="(a)")
    assert "is one image" in message


def test_a_file_that_is_no_csv(tmp_path):
    _image(tmp_path / "page.png")
    (tmp_path / "page.png").rename(tmp_path / "page.csv")
    assert "is not a CSV in UTF-8" in message_of(_load, tmp_path / "page.csv")
    assert "is not a CSV in UTF-8" in message_of(
        read_csv, _csv(tmp_path, "path,writer\na.png,Müller\n", "latin-1")
    )
    assert "No such file" in message_of(read_csv, tmp_path / "gone.csv")


def test_expressions_are_for_folders(tmp_path):
    _image(tmp_path / "a.png")
    path = _csv(tmp_path, "path\na.png\n")
    assert "are for folders of images" in message_of(_load, path, writer_regex="(.)")


# Splits


def _with_splits(*splits):
    pages = tuple(Page(f"{i}.png", "", str(i), s, None, {}) for i, s in enumerate(splits))
    return Manifest(Path(), pages, ())


def test_select():
    some = _with_splits("train", "test", "train", "")
    assert [page.page for page in some.select("train").pages] == ["0", "2"]
    assert some.select("") is some
    assert "'val', known: test, train" in message_of(some.select, "val")
    none = _with_splits("", "")
    assert none.select("train") is none


def test_load_applies_the_split(tmp_path):
    _images(tmp_path, "a.png", "b.png")
    path = _csv(tmp_path, "path,split\na.png,train\nb.png,test\n")
    assert [page.path for page in _load(path, split="test").pages] == ["b.png"]
    assert "known: test, train" in message_of(_load, path, split="tset")


def test_the_built_in_corpus(tmp_path, monkeypatch):
    _images(tmp_path, "a.png", "b.png")
    path = _csv(tmp_path, "path,writer,page,split\na.png,x,1,train\nb.png,y,1,test\n")
    caches = []
    monkeypatch.setattr(sources.synthetic, "ensure", lambda cache: caches.append(cache) or path)
    manifest = _load("synthetic", split="train", cache=str(tmp_path / "cache"))
    assert caches == [tmp_path / "cache"]
    assert [page.writer for page in manifest.pages] == ["x"]
