"""Kinds of files by their first bytes."""

import io
import zipfile

import pytest
from PIL import Image

from saghog_jax.input_pipeline import file_kinds
from saghog_jax.input_pipeline.file_kinds import HEAD, HEIC, PDF, kind_of, no_image, read_kind


def _image(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()[:HEAD]


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            ods = "application/vnd.oasis.opendocument.spreadsheet"
            archive.writestr(name, ods if name == "mimetype" else "")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "JPEG2000", "WEBP", "AVIF"])
def test_images(kind):
    found = kind_of(_image(kind))
    assert found is not None
    assert found.image
    assert kind.replace("JPEG2000", "JPEG 2000").lower() in found.name.lower()


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "an AVIF image"),
        (b"\n\n%PDF-1.4", "a PDF"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook (XLSX)"),
        (zipped("mimetype"), "an OpenDocument spreadsheet (ODS)"),
        (zipped("a.png"), "an archive (ZIP)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file"),
    ],
)
def test_other_kinds(head, name):
    assert kind_of(head).name.startswith(name)


@pytest.mark.parametrize("head", [b"", b"path,writer\n", "手,Ä\n".encode(), b"\xff\xfep\0a\0"])
def test_a_table_is_none_of_them(head):
    assert kind_of(head) is None


def test_read_kind(tmp_path):
    (tmp_path / "a").write_bytes(b"%PDF-1.7")
    assert read_kind(tmp_path / "a") == PDF
    assert read_kind(tmp_path / "gone") is None


def test_reasons(monkeypatch):
    heic = b"\0\0\0\x18ftypheic"
    assert kind_of(heic) == HEIC
    monkeypatch.setattr(file_kinds, "can_read_heic", lambda: False)
    assert no_image(heic) == (
        "a HEIC image; install the optional part for it (pip install 'saghog_jax[heic]')"
    )
    assert "a PDF, not an image; its pages are read if it is" in no_image(b"%PDF-1.4")
    assert no_image(b"text") == "not an image, or in a format that is not supported"
    assert no_image(b"8BPS").endswith("not supported: a Photoshop file")
