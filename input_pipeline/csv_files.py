"""Reads CSV files as spreadsheets, pandas and R write them.

The encoding is UTF-8, or UTF-16 as in the "Unicode text" of Excel. Cells are separated by comma,
semicolon or tab, or by the character in a first line such as `sep=;`. Empty columns at the end are
left out.
"""

import csv
import io
import re
from pathlib import Path

from saghog_jax.input_pipeline.errors import UserError
from saghog_jax.input_pipeline.file_kinds import HEAD, kind_of
from saghog_jax.input_pipeline.unicode_forms import composed

_SEPARATORS = ",;\t"
_REMEDY = "save the table as `CSV UTF-8` (in Excel: Save As, in LibreOffice: Character set)"


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads the header and the rows of a CSV file; empty lines are skipped.

    Returns:
      the column names without surrounding spaces, in Unicode's form NFC, and for each row the
      number of its last line and its cells.

    Raises:
      UserError: the file cannot be read, is empty, or is not a CSV in UTF-8 or UTF-16; the message
        names the cell or the kind of file.
    """
    try:
        text = _decode(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    separator, text, before = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [
            (reader.line_num + before, cells)
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num + before}: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty; its first line must name the columns")
    header = [composed(name.strip()) for name in rows[0][1]]
    # A column without a name stays if a row has a cell in it.
    header = header[: max(_width(header), *(_width(cells) for _, cells in rows[1:]), 0)]
    return header, [(line, _cut(cells, len(header))) for line, cells in rows[1:]]


def _width(cells: list[str]) -> int:
    """The number of cells up to the last that is not empty."""
    return max((i for i, cell in enumerate(cells, start=1) if cell.strip()), default=0)


def _cut(cells: list[str], width: int) -> list[str]:
    """The cells of a row without empty cells beyond the header."""
    return cells if _width(cells) > width else cells[:width]


def _decode(path: Path, data: bytes) -> str:
    kind = kind_of(data[:HEAD])
    if kind is not None:
        raise UserError(f"{path} is not a CSV in UTF-8 but {kind.name}; {kind.remedy}")
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    # Without a byte-order mark, UTF-16 of Latin letters has a zero in every other byte.
    elif data[1:4:2] == b"\0\0":
        encoding = "utf-16-le"
    elif data[0:3:2] == b"\0\0":
        encoding = "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise UserError(f"{path} is not a CSV in UTF-16 ({error.reason}); {_REMEDY}") from None
        # The decoder counts from behind a byte-order mark.
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line, cell = _cell_at(data, start)
    raise UserError(
        f"{path} is not a CSV in UTF-8: line {line} has a cell that another code page wrote "
        f"({cell!r} in that of Windows); {_REMEDY}"
    )


def _cell_at(data: bytes, start: int) -> tuple[int, str]:
    """Line and text of the cell around a byte, read in the code page of Western Windows."""
    before = re.split(rb'[,;\t"\r\n]', data[:start])[-1]
    after = re.split(rb'[,;\t"\r\n]', data[start:], maxsplit=1)[0]
    lines = len(re.findall(rb"\r\n|\r|\n", data[:start]))
    return lines + 1, (before + after).decode("cp1252", errors="replace").strip()


def _separator(text: str) -> tuple[str, str, int]:
    """The separator, the text of the table, and the number of lines before it."""
    said = re.match(r'"?sep=(.)"?[,;\t]*(\r\n|\r|\n)', text, re.IGNORECASE)
    if said:
        return said[1], text[said.end() :], 1
    first = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return max(_SEPARATORS, key=first.count), text, 0
