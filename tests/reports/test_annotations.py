"""decisions.csv as a report and as spreadsheets write it."""

import pytest
from messages import message_of

from saghog_jax.reports.annotations import read_decisions

CSV = (
    "query,page,rank,distance,decision\n"
    '"a,1.png","b;é.png",1,0.1,accept\n"a,1.png","c\td.png#0,1,2,3",2,0.2,reject\n'
)
EXPECTED = {
    ("a,1.png", "b;é.png"): "accept",
    ("a,1.png", "c\td.png#0,1,2,3"): "reject",
}


def saved(separator, start=""):
    """The table as a spreadsheet saves it, with decimal commas."""
    rows = [
        ["query", "page", "Rank", "distance", "Decision", ""],
        ["a,1.png", "b;é.png", "1", "0,1", "accept", ""],
        ["a,1.png", "c\td.png#0,1,2,3", "2", "0,2", "Reject ", ""],
    ]
    quoted = [
        [f'"{cell}"' if any(c in cell for c in ",;\t") else cell for cell in row] for row in rows
    ]
    return start + "".join(separator.join(row) + "\r\n" for row in quoted)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(CSV.encode(), id="exported"),
        pytest.param(saved(";").encode("utf-8-sig"), id="Excel"),
        pytest.param(saved("\t").encode("utf-16"), id="Unicode text"),
        pytest.param(saved(";", "sep=;\r\n").encode("utf-8-sig"), id="sep=;"),
        pytest.param(saved(",").encode(), id="LibreOffice"),
    ],
)
def test_decisions(tmp_path, data):
    path = tmp_path / "decisions.csv"
    path.write_bytes(data)
    assert read_decisions(path) == EXPECTED
    assert read_decisions(str(path)) == EXPECTED


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(";").encode("cp1252"), "line 2 has a cell that another code page wrote ('é.png' in"),
        (b"PK\x03\x04[Content_Types].xml", "is not a CSV in UTF-8 but an Excel workbook"),
        (b"query,page\na,b\n", "is not a decisions.csv: no column decision, only 'query', 'page'"),
        (b"query,page,decision\na,b,perhaps\n", "line 2: expected the columns query, page and"),
        (b"query,page,decision\na,b\n", "(one of accept, reject, unsure); found the decision ''"),
        (b"", "is empty"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, data, message):
    (tmp_path / "decisions.csv").write_bytes(data)
    assert message in message_of(read_decisions, tmp_path / "decisions.csv")
