"""Decisions in a browser: at both pages, groups with names, filters, undo, and files of others."""

import json

import pytest
from planted import page, pages_of
from report_helpers import click_through, report

DECIDE = """
const on = (query, page, choice) => decide(data.pages[query], data.pages[page], choice);
const chosen = (sheet, page) => document.querySelector(
  `#${sheet} figure[data-key="${page}"]`).dataset.decision;
"""


@pytest.mark.browser
def test_a_decision_shows_at_both_pages_and_groups_have_names(tmp_path):
    log = click_through(
        report(tmp_path, pages_of(2, 3)),
        DECIDE
        + """
on("p0", "p1", "accept");
log.both = [chosen("p0", "p1"), chosen("p1", "p0")];
on("p1", "p0", "reject");
log.changed = [chosen("p0", "p1"), decisions.size];
on("p1", "p0", "accept");
on("p4", "p5", "accept");
on("p1", "p2", "accept");
const inputs = () => [...document.querySelectorAll(".hand input")];
log.groups = [...document.querySelectorAll(".hand")].map((n) =>
  n.querySelectorAll(".member").length);
inputs()[0].value = "Hand A";
inputs()[0].dispatchEvent(new Event("change"));
log.names = [...document.querySelectorAll(".ingroup")].map((n) => n.textContent);
// A page that joins the group gets its name; the names of groups that are joined are kept.
on("p0", "p3", "accept");
inputs()[1].value = "Hand B";
inputs()[1].dispatchEvent(new Event("change"));
log.csv = decisionsCsv();
on("p3", "p4", "accept");
log.joined = groupsOf().map((group) => group.name);
on("p0", "p2", "reject");
log.rejected = document.querySelector(".contradiction").textContent;
undo();
undo();
log.apart = groupsOf().map((group) => group.name);
decisions.clear();
loadDecisions(log.csv);
log.loaded = groupsOf().map((group) => [group.name, group.members.length]);
document.querySelectorAll(".member")[2].click();
log.went = document.activeElement.closest(".sheet").id;
""",
    )
    assert log["both"] == ["accept", "accept"]
    assert log["changed"] == ["reject", 1]
    assert log["groups"] == [3, 2]
    assert log["names"] == ["Hand A", "Hand A", "Hand A", "", "Group 2", "Group 2"]
    lines = [line.split(",") for line in log["csv"].splitlines()]
    assert lines[0][4:] == ["decision", "group"]
    assert [line[-1] for line in lines[1:]] == ['"Hand A"', '"Hand B"', '"Hand A"', '"Hand A"']
    assert log["joined"] == ["Hand A + Hand B"]
    assert log["rejected"].startswith("But rejected: w00/p0.png – w00/p2.png")
    assert log["apart"] == ["Hand A", "Hand B"]
    assert log["loaded"] == [["Hand A", 4], ["Hand B", 2]]
    assert log["went"].startswith("p")


@pytest.mark.browser
def test_filters_undo_and_what_is_left(tmp_path):
    log = click_through(
        report(tmp_path, pages_of(2, 3)),
        DECIDE
        + """
const left = () => byId("left").textContent;
log.left = [left()];
const first = data.sheets[0].hits[0][0];
on("p0", first, "accept");
log.left.push(left());
byId("accepted").click();
log.accepted = sheets();
byId("accepted").click();
byId("undecided").click();
log.undecided = [sheets().includes("p0"), sheets().length];
byId("undecided").click();
document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "z", bubbles: true}));
log.left.push(left());
log.undo = byId("undo").disabled;
// A copy of the page needs no decision: the next match does.
data.sheets[0].hits[0][4] = true;
on("p0", first, "accept");
log.copy = isOpen(data.sheets[0]);
on("p0", data.sheets[0].hits[1][0], "reject");
log.decided = isOpen(data.sheets[0]);
""",
    )
    assert log["left"][0] == log["left"][2] == "6 of 6 pages left to decide"
    assert log["left"][1] != log["left"][0]
    assert "p0" in log["accepted"]
    assert len(log["accepted"]) == 2
    assert log["undecided"][0] is False
    assert f"{log['undecided'][1]} of 6 pages" in log["left"][1]
    assert log["undo"] is True
    assert log["copy"] is True
    assert log["decided"] is False


@pytest.mark.browser
def test_files_of_spreadsheets_and_of_others(tmp_path):
    pages = [page(name, "", "1") for name in ("a.png", "Zürich.png", "c.png")]
    head = "query;page;rank;distance;decision;note\r\n"
    line = 'a.png;Zürich.png;1;0,1;Accept;"größer; ""anders"""\r\n'
    files = {
        "utf-8": (head + line).encode(),
        "mark": (head + line).encode("utf-8-sig"),
        "utf-16": (head + line).encode("utf-16"),
        "utf-16-le": (head + line).encode("utf-16-le"),
        "utf-16-be": (head + line).encode("utf-16-be"),
        "windows": (head + line).encode("cp1252"),
    }
    bytes_of = json.dumps({name: list(data) for name, data in files.items()})
    log = click_through(
        report(tmp_path, pages),
        f"""
log.loaded = Object.entries({bytes_of}).map(([name, bytes]) => {{
  decisions.clear();
  loadDecisions(decode(new Uint8Array(bytes)));
  const [pair] = decisions.values();
  return [name, pair?.page.id, pair?.choice, pair?.note];
}});
let saved = null;
URL.createObjectURL = (blob) => {{ saved = blob; return "#"; }};
HTMLAnchorElement.prototype.click = () => {{}};
byId("export").click();
log.mark = saved.size - new Blob([decisionsCsv()]).size;
loadDecisions("query,page,decision\\na.png,c.png,accept\\nc.png,a.png,reject\\n");
log.said = byId("count").textContent;
log.last = decisionOn(data.pages.p0, data.pages.p2).choice;
log.store = STORE.endsWith("/looked_report.html");
""",
    )
    expected = ["Zürich.png", "accept", 'größer; "anders"']
    assert log["loaded"] == [[name, *expected] for name in files]
    # A byte-order mark of three bytes.
    assert log["mark"] == 3
    assert log["said"] == "contradictory decisions, the last one counts: c.png – a.png"
    assert log["last"] == "reject"
    assert log["store"] is True
