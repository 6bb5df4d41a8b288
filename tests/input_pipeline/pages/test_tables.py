"""Tables of pages as spreadsheets, pandas, R and Windows write them."""

import logging
import unicodedata

import numpy as np
import pytest
from messages import message_of
from PIL import Image

from saghog_jax.configs.common import data_config
from saghog_jax.input_pipeline.pages.manifest import read_csv
from saghog_jax.input_pipeline.pages.sources import load_manifest

ROWS = [("a.png", "Müller", "1"), ("b.png", "Meier", "1"), ("c.png", "Meier", "2")]


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        Image.fromarray(np.full((4, 5), 255, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def table(separator, end="\r\n", header="path,writer,page"):
    lines = [header.replace(",", separator), *(separator.join(row) for row in ROWS)]
    return end.join(lines) + end


def write(folder, data, name="pages.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def load(pages, **changes):
    data = data_config("")
    data.pages = str(pages)
    data.update(changes)
    return load_manifest(data)


def rows(manifest):
    return [page[:3] for page in manifest.pages]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(table(";").encode("utf-8-sig"), id="Excel, CSV UTF-8"),
        pytest.param(table("\t").encode("utf-16"), id="Excel, Unicode text"),
        pytest.param(b"\xfe\xff" + table(",").encode("utf-16-be"), id="UTF-16, big-endian"),
        pytest.param(table(",").encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param(table(",").encode("utf-16-be"), id="big-endian without a mark"),
        pytest.param(("sep=;\r\n" + table(";")).encode("utf-8-sig"), id="sep=;"),
        pytest.param(('"sep=\t"\n' + table("\t")).encode(), id="sep= in quotes"),
        pytest.param(table("|", header="sep=|\npath,writer,page").encode(), id="sep=|"),
        pytest.param(table(";", end="\r").encode(), id="carriage returns"),
        pytest.param(table(",", header="path,Writer,Page").encode(), id="capitals"),
        pytest.param(table(";", header=" PATH ,WRITER, page ").encode(), id="more capitals"),
        pytest.param(table(",", header="Imgs,Writer,Page").encode(), id="published name"),
        pytest.param(table(",").replace("a.png", ".\\a.png").encode(), id="backslashes"),
        pytest.param(table(",").replace("a.png", " a.png ").encode(), id="spaces"),
        pytest.param(table(",", end=",,\n").encode(), id="empty columns at the end"),
        pytest.param((table(",") + " , ,\n,,\n").encode(), id="empty rows"),
    ],
)
def test_dialects(folder, data):
    manifest = load(write(folder, data))
    assert rows(manifest) == ROWS
    assert manifest.columns == ()


def test_backslashes_lead_into_folders(folder):
    (folder / "vol 1").mkdir()
    (folder / "a.png").rename(folder / "vol 1" / "a.png")
    manifest = load(write(folder, "path,writer\nvol 1\\a.png,x\nb.png,y\n"))
    assert rows(manifest) == [("vol 1/a.png", "x", "a"), ("b.png", "y", "b")]


def test_a_backslash_of_a_name_stays(folder):
    (folder / "a.png").rename(folder / "a\\b.png")
    assert rows(load(write(folder, "path\na\\b.png\n")))[0][0] == "a\\b.png"
    # The same table elsewhere, without the files.
    assert read_csv(folder / "pages.csv", root=folder / "gone").pages[0].path == "a\\b.png"


@pytest.mark.parametrize("path", ["C:\\scans\\a.png", "\\\\server\\scans\\a.png", "D:/scans/a.png"])
def test_paths_of_a_windows_computer_are_refused(folder, path):
    message = message_of(load, write(folder, f"path,writer\nb.png,x\n{path},y\n"))
    assert f"line 3: the path {path!r} is that of a Windows computer" in message
    assert "relative to the folder of the table, such as 'a.png'" in message


def test_the_windows_code_page_is_refused_with_the_cell(folder):
    for mark in (b"", b"\xef\xbb\xbf"):
        data = mark + table(";").replace("c.png", "ü.png").encode("utf-8")
        bad = data.replace("ü.png".encode(), "ü.png".encode("cp1252"))
        message = message_of(load, write(folder, bad))
        assert "is not a CSV in UTF-8: line 4 has a cell that another code page wrote" in message
        assert "('ü.png' in that of Windows)" in message
        assert "save the table as `CSV UTF-8`" in message


@pytest.mark.parametrize("mark", ["NA", "N/A", "#N/A", "<NA>", "nan", "NULL", "None", "?"])
def test_marks_of_unknown_writers(folder, caplog, mark):
    path = write(folder, f'"path","writer","hand"\na.png,{mark},1\nb.png,{mark},NA\nc.png,M,2\n')
    with caplog.at_level(logging.WARNING):
        manifest = load(path)
    assert manifest.writers == ["M"]
    assert [page.writer for page in manifest.pages] == ["", "", "M"]
    assert [page.extra["hand"] for page in manifest.pages] == ["1", "", "2"]
    (line,) = caplog.messages
    assert f"3 cells hold {', '.join(map(repr, sorted({mark, 'NA'})))}." in line
    assert "2 of them are writers" in line


def test_other_cells_without_a_value(folder):
    path = write(
        folder,
        "path,writer,page,split,scale,x0,y0,x1,y1\n"
        "a.png,M,NA,NA,NA,NA,NA,NA,NA\nb.png,N,7,test,2,0.0,0.0,4.0,3.0\n",
    )
    first, second = load(path).pages
    assert first == ("a.png", "M", "a", "", None, {"scale": ""})
    assert first.scale == 1
    assert second == ("b.png", "N", "7", "test", (0, 0, 4, 3), {"scale": "2"})


def test_a_name_read_from_a_file_name_is_no_mark(folder):
    """Only tables are written by programs that mark unknown values."""
    (folder / "a.png").rename(folder / "NA.png")
    assert load(folder, writer_regex=r"(\w+)\.png").writers == ["NA", "b", "c"]
    manifest = load(folder, writer_regex=r"(\w+)\.png")
    manifest.write(folder / "own.csv")
    assert read_csv(folder / "own.csv") == manifest


def test_a_known_column_wins_over_its_capitals(folder):
    manifest = load(write(folder, "path,writer,Writer\na.png,x,y\n"))
    assert manifest.pages[0].writer == "x"
    assert manifest.columns == ("Writer",)
    message = message_of(load, write(folder, "path,Writer,WRITER\na.png,x,y\n"))
    assert "names the column 'writer' twice" in message


def test_unicode_forms_are_one_writer(folder):
    decomposed = unicodedata.normalize("NFD", "Müller")
    text = (
        "path,writer,Gru\u0308n,split\n"
        f"a.png,Müller,{decomposed},{decomposed}\nb.png,{decomposed},,\n"
    )
    manifest = load(write(folder, text))
    assert manifest.writers == ["Müller"]
    assert manifest.columns == ("Grün",)
    assert manifest.pages[0].extra == {"Grün": "Müller"}
    assert rows(load(folder / "pages.csv", split=decomposed)) == [("a.png", "Müller", "a")]


def test_paths_in_another_unicode_form(folder):
    """A table from a spreadsheet (composed) names files from a Mac (decomposed)."""
    decomposed = unicodedata.normalize("NFD", "Bébé.png")
    (folder / "a.png").rename(folder / decomposed)
    manifest = load(write(folder, "path\nBébé.png\nb.png\n"))
    assert rows(manifest) == [(decomposed, "", "Bébé"), ("b.png", "", "b")]
    assert all((manifest.root / page.path).exists() for page in manifest.pages)
    message = message_of(load, write(folder, f"path\nBébé.png\n{decomposed}\n"))
    assert "is listed already in line 2" in message
    assert len(load(folder / "Bébé.png")) == 1


def test_expressions_match_the_composed_form(folder):
    for name, form in (("a", "NFC"), ("b", "NFD")):
        (folder / f"{name}.png").rename(folder / unicodedata.normalize(form, f"Bébé_{name}.png"))
    (folder / "c.png").unlink()
    for form in ("NFC", "NFD"):
        manifest = load(folder, writer_regex=unicodedata.normalize(form, "^([Bbé]+)_"))
        assert manifest.writers == ["Bébé"]
        assert {page.page for page in manifest.pages} == {"Bébé_a", "Bébé_b"}
        assert all((folder / page.path).exists() for page in manifest.pages)


@pytest.mark.parametrize(
    ("data", "name", "remedy"),
    [
        (b"PK\x03\x04......[Content_Types].xml", "an Excel workbook", "save the table as `CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel", "save the table as `CSV UTF-8`"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image", "give it a name that ends with .png"),
        (b"%PDF-1.5", "a PDF", "give it a name that ends with .pdf"),
        (b"\0\0\0\x18ftypheic", "a HEIC image", "give it a name that ends with .heic"),
    ],
)
def test_files_that_are_no_tables(folder, data, name, remedy):
    for file in ("pages.csv", "pages.xlsx", "pages"):
        message = message_of(load, write(folder, data, file))
        assert f"{file} is not a CSV in UTF-8 but {name}" in message
        assert remedy in message
