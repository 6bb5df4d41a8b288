"""decisions.csv as a report and as spreadsheets write it, and the pages it speaks of."""

import pytest
from messages import message_of
from planted import page, planted

from saghog_jax.reports.decisions import Decision, of_pages, read_decisions

CSV = (
    "query,page,rank,distance,decision\n"
    '"a,1.png","b;é.png",1,0.1,accept\n"a,1.png","c\td.png#0,1,2,3",2,0.2,reject\n'
)
EXPECTED = [
    Decision("a,1.png", "b;é.png", "accept", "", ""),
    Decision("a,1.png", "c\td.png#0,1,2,3", "reject", "", ""),
]


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


def test_notes_and_groups_are_read_where_they_are(tmp_path):
    (tmp_path / "d.csv").write_text(
        "\ufeffquery;page;Decision;Note;group\r\n"
        'a.png;b.png;accept;"long s; rounded";Hand A\r\na.png;c.png;reject;;\r\n',
        encoding="utf-8",
    )
    first, second = read_decisions(tmp_path / "d.csv")
    assert first == Decision("a.png", "b.png", "accept", "", "", "long s; rounded", "Hand A")
    assert second == Decision("a.png", "c.png", "reject")


def test_a_decision_counts_both_ways_in_one_collection_alone(tmp_path):
    e = embedded(tmp_path / "e", {"a.png": None, "b.png": None, "c.png": None})
    other = embedded(tmp_path / "o", {"a.png": None, "b.png": None, "c.png": None})
    decisions = [Decision("a.png", "b.png", "accept"), Decision("b.png", "a.png", "reject")]
    decisions.append(Decision("b.png", "c.png", "unsure"))
    said = {(one.query, one.page): one.decision for one in decisions}
    # Two decisions about two pages stay two.
    assert of_pages(decisions, e, e) == said | {("c.png", "b.png"): "unsure"}
    assert of_pages(decisions, e, other) == said


def both_ways(decisions):
    """Decisions about A and B, and about B and A."""
    return decisions | {(page, query): choice for (query, page), choice in decisions.items()}


def embedded(folder, digests):
    """Embeddings of pages by name, with their digests."""
    extra = [{"page_digest": d} if d is not None else {} for d in digests.values()]
    return planted(folder, [page(n, extra=e) for n, e in zip(digests, extra, strict=True)])


def test_decisions_find_their_pages_by_digest(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "d.csv").write_text(
        "query,page,rank,distance,decision,query_digest,page_digest\n"
        "IMG1.png,IMG2.png,1,.1,accept,0a,0b\n"
        "IMG1.png,IMG3.png,2,.1,reject,0A,0c\n"
        "IMG9.png,IMG2.png,3,.1,unsure,99,0b\n"
        # The name is that of another page now.
        "x.png,IMG1.png,4,.1,accept,98,0a\n"
    )
    decisions = read_decisions(tmp_path / "d.csv")
    assert decisions[1] == Decision("IMG1.png", "IMG3.png", "reject", "0a", "0c")
    names = {"scans/IMG1.png": "0a", "scans/IMG2.png": "0b", "IMG3.png": "0c", "x.png": "0d"}
    e = embedded(tmp_path / "e", names)
    assert of_pages(decisions, e, e) == both_ways(
        {
            ("scans/IMG1.png", "scans/IMG2.png"): "accept",
            ("scans/IMG1.png", "IMG3.png"): "reject",
        }
    )
    assert caplog.messages == [
        "2 of 4 decisions are left out: 2 of their pages are not among the embedded pages: "
        "IMG9.png, x.png"
    ]


def test_a_decision_counts_for_each_copy(tmp_path, caplog):
    caplog.set_level("INFO")
    e = embedded(tmp_path / "e", {"a.png": "0a", "copy.png": "0a", "b.png": "0b"})
    decisions = [Decision("old.png", "b.png", "accept", "0a", "0b")]
    assert of_pages(decisions, e, e) == both_ways(
        {("a.png", "b.png"): "accept", ("copy.png", "b.png"): "accept"}
    )
    assert caplog.messages == ["decisions count for each copy of a page: a.png, copy.png"]


@pytest.mark.parametrize("of_embeddings", [False, True])
def test_without_digests_names_count(tmp_path, caplog, of_embeddings):
    """Files and embeddings of older versions have none."""
    digests = {f"{name}.png": f"0{name}" if of_embeddings else None for name in "abcde"}
    e = embedded(tmp_path / "e", digests)
    known = ("", "") if of_embeddings else ("0a", "0b")
    decisions = [Decision("a.png", f"{name}.png", "unsure", *known) for name in "bvwxyz"]
    assert of_pages(decisions, e, e) == both_ways({("a.png", "b.png"): "unsure"})
    assert caplog.messages == [
        "5 of 6 decisions are left out: 5 of their pages are not among the embedded pages: "
        "v.png, w.png, x.png and 2 more"
    ]
