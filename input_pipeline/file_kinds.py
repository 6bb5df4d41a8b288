"""What a file is by its first bytes, for files given where a table or an image is expected."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

HEIC_REMEDY = "install the optional part for it (pip install 'saghog_jax[heic]')"
PDF_REMEDY = "install the optional part for its pages (pip install 'saghog_jax[pdf]')"
_AS_CSV = "open it in a spreadsheet and save the table as `CSV UTF-8`"
_UNPACK = "unpack it and give the folder"
# Bytes of a file that are looked at.
HEAD = 4096


class Kind(NamedTuple):
    """A kind of file.

    name: with its article, such as `a PDF`.
    remedy: what to do where a table of pages is expected; empty if nothing is known.
    image: whether the file is an image that the program reads under a suffix of its kind.
    """

    name: str
    remedy: str = ""
    image: bool = False


PDF = Kind("a PDF", "give it a name that ends with .pdf")
HEIC = Kind("a HEIC image", "give it a name that ends with .heic", image=True)
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def _image(name: str, suffix: str) -> Kind:
    return Kind(name, f"give it a name that ends with {suffix}", image=True)


_STARTS = {
    b"%PDF-": PDF,
    _OLD_OFFICE: Kind("an old Excel or Word file", _AS_CSV),
    b"\x89PNG\r\n\x1a\n": _image("a PNG image", ".png"),
    b"\xff\xd8\xff": _image("a JPEG image", ".jpg"),
    b"II*\x00": _image("a TIFF image", ".tif"),
    b"MM\x00*": _image("a TIFF image", ".tif"),
    b"II+\x00": _image("a BigTIFF image", ".tif"),
    b"GIF8": _image("a GIF image", ".gif"),
    b"\x00\x00\x00\x0cjP  ": _image("a JPEG 2000 image", ".jp2"),
    b"\xff\x4f\xff\x51": _image("a JPEG 2000 image", ".j2k"),
    b"AT&TFORM": Kind("a DjVu file", "save its pages as images"),
    b"8BPS": Kind("a Photoshop file", "save it as an image"),
    b"\x1f\x8b": Kind("a packed file (gzip)", _UNPACK),
    b"Rar!": Kind("an archive (RAR)", _UNPACK),
    b"7z\xbc\xaf": Kind("an archive (7z)", _UNPACK),
    b"SQLite format 3": Kind("a SQLite database", "save the table as `CSV UTF-8`"),
    b"PAR1": Kind("a Parquet table", "save it as CSV"),
}


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file from its first HEAD bytes; None if it is none of the kinds listed here."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp":
        if b"avif" in head[8:64] or b"avis" in head[8:64]:
            return _image("an AVIF image", ".avif")
        if head[8:12] in _HEIC_BRANDS:
            return HEIC
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _image("a WebP image", ".webp")
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith(b"PK\x03\x04"):
        return _packed(head)
    return None


def _packed(head: bytes) -> Kind:
    """The kind of a ZIP file; office documents are ZIP files."""
    if b"opendocument.spreadsheet" in head:
        return Kind("an OpenDocument spreadsheet (ODS)", _AS_CSV)
    if any(name in head for name in (b"[Content_Types].xml", b"docProps/", b"xl/")):
        return Kind("an Excel workbook (XLSX) or another office file", _AS_CSV)
    return Kind("an archive (ZIP)", _UNPACK)


def read_kind(path: Path) -> Kind | None:
    """The kind of a file on disk; None if it is none of the listed kinds or cannot be read."""
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD))
    except OSError:
        return None


@functools.cache
def can_read_heic() -> bool:
    """Whether the optional part that reads HEIC images is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def no_image(head: bytes) -> str:
    """The reason why a file with these first HEAD bytes cannot be read as an image."""
    kind = kind_of(head)
    if kind == HEIC and not can_read_heic():
        return f"a HEIC image; {HEIC_REMEDY}"
    if kind == PDF:
        return "a PDF, not an image; its pages are read if it is given as data.pages"
    named = f": {kind.name}" if kind else ""
    return f"not an image, or in a format that is not supported{named}"
