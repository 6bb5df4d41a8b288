"""Reads CSV files of all dialects that spreadsheets write: UTF-8; comma, semicolon or tab."""

import csv
import io
from pathlib import Path

from saghog_jax.input_pipeline.errors import UserError


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads the header and the rows of a CSV file; empty lines are skipped.

    Returns:
      the column names without surrounding spaces, and for each row the number of its last line and
      its cells.

    Raises:
      UserError: the file cannot be read, is empty, or is not a CSV in UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a CSV in UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty; its first line must name the columns")
    return [name.strip() for name in rows[0][1]], rows[1:]
