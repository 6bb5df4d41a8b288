"""Behaviour of the reports in a browser: sorting, decisions, comparison, evidence, and phones."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT
from planted import page, pages_of, planted
from report_helpers import EVIL, click_through, report

from saghog_jax import retrieve, search
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.configs import search as search_config


@pytest.mark.browser
def test_sorting_finding_and_paging(small):
    log = click_through(
        small,
        """
log.start = sheets();
log.count = byId("count").textContent;
byId("more").click();
log.all = sheets().length;
log.more = byId("more").hidden;
type("order", "hard");
log.hard = shown.slice(0, 20).map((s) => s.ap);
type("order", "given");
type("find", "W03");
log.matching = sheets();
type("find", "nothing like it");
log.none = sheets();
type("find", "");
byId("failed").click();
log.failed = shown.every((s) => s.hits[0][2] === "wrong");
byId("failed").click();
const writers = byId("writers");
const column = () => [...writers.tBodies[0].rows].map((r) => r.cells[0].textContent);
writers.querySelectorAll(".sort")[0].click();
log.sorted = column();
writers.querySelectorAll(".sort")[0].click();
log.reversed = column();
log.aria = writers.querySelector("th").getAttribute("aria-sort");
goTo("p21");
log.went = sheets().includes("p21");
""",
    )
    assert log["start"] == [f"p{i}" for i in range(20)]
    assert log["count"] == "20 of 22 sheets"
    assert log["all"] == 22
    assert log["more"] is True
    assert log["hard"] == sorted(log["hard"])
    assert log["matching"] == ["p12", "p13", "p14", "p15"]
    assert log["none"] == []
    assert log["failed"] is True
    assert log["sorted"] == [f"w0{i}" for i in range(5)]
    assert log["reversed"] == log["sorted"][::-1]
    assert log["aria"] == "descending"
    assert log["went"] is True


@pytest.mark.browser
def test_deciding_by_keyboard_and_button(small):
    log = click_through(
        small,
        """
press("j");
log.first = document.activeElement.closest(".sheet").id;
press("a");
press("ArrowRight");
press("r");
press("j");
log.second = document.activeElement.closest(".sheet").id;
// Its first match is the page before, which is decided.
press("ArrowRight");
press("u");
press("k");
document.querySelectorAll("#p3 .hits .accept")[2].click();
document.querySelectorAll("#p3 .hits .accept")[3].click();
document.querySelectorAll("#p3 .hits .accept")[3].click();
log.pressed = [...document.querySelectorAll('[aria-pressed="true"]')].map((node) =>
  [node.closest(".sheet").id, node.closest("figure").querySelector(".name").title, node.className]);
log.decided = byId("decided").textContent;
log.csv = decisionsCsv();
log.stored = JSON.parse(localStorage.getItem(STORE)).length;
let saved = null;
URL.createObjectURL = (blob) => { saved = blob; return "#"; };
HTMLAnchorElement.prototype.click = function () { log.download = this.download; };
byId("export").click();
log.size = saved.size;
decisions.clear();
loadDecisions(log.csv.replace(",reject", ",accept"));
log.loaded = decisionsCsv();
// As a spreadsheet saves it.
log.saved = [";", "\\t"].map((separator) => {
  decisions.clear();
  const lines = log.csv.replaceAll(",", separator).replaceAll("\\n", "\\r\\n")
    .replace("decision", "Decision").replace("reject", "Reject");
  const said = separator === ";" ? "sep=;\\r\\n" : "";
  loadDecisions("\\ufeff" + said + lines);
  return decisionsCsv();
});
loadDecisions("something,else");
log.refused = byId("count").textContent;
press("c");
""",
    )
    assert log["first"] == "p0"
    assert log["second"] == "p1"
    rows = [line.split(",") for line in log["csv"].splitlines()]
    assert rows[0] == ["query", "page", "rank", "distance", "decision"]
    assert [(row[0], row[2], row[4]) for row in rows[1:]] == [
        ('"w00/p0.png"', "1", "accept"),
        ('"w00/p0.png"', "2", "reject"),
        ('"w00/p1.png"', "2", "unsure"),
        ('"w00/p3.png"', "3", "accept"),
    ]
    pairs = [(row[0].strip('"'), row[1].strip('"'), row[4]) for row in rows[1:]]
    assert {(f"w00/p{q[1:]}.png", page, choice) for q, page, choice in log["pressed"]} >= set(pairs)
    # Each shows at both pages where both list each other.
    shown = {(f"w{int(q[1:]) // 4:02d}/p{int(q[1:]) % 4}.png", p, c) for q, p, c in log["pressed"]}
    known = {tuple(sorted(pair[:2])) + pair[2:] for pair in pairs}
    assert {tuple(sorted(pair[:2])) + pair[2:] for pair in shown} == known
    assert log["decided"] == "4"
    assert log["stored"] == 4
    assert log["download"] == "decisions.csv"
    assert log["size"] == len(log["csv"])
    assert log["loaded"] == log["csv"].replace(",reject", ",accept")
    assert log["saved"] == [log["csv"]] * 2
    assert log["refused"].startswith("not a decisions.csv")


@pytest.mark.browser
def test_decisions_find_their_pages_by_digest(tmp_path):
    names = {"scans/a.png": "0a", "b.png": "0b", "copy.png": "0b", "c.png": "0c"}
    pages = [page(name, "w", extra={"page_digest": digest}) for name, digest in names.items()]
    log = click_through(
        report(tmp_path, pages),
        """
const head = "query,page,rank,distance,decision";
loadDecisions(head + ",query_digest,page_digest\\na.png,b.png,1,.1,accept,0a,0b\\n"
  + "gone.png,c.png,1,.1,reject,99,0c\\n");
log.note = byId("count").textContent;
const pressed = () => [...document.querySelectorAll('[aria-pressed="true"]')].map((button) =>
  [button.closest(".sheet").id, button.closest("figure").querySelector(".name").title,
    button.textContent]);
log.pressed = pressed();
log.csv = decisionsCsv();
log.stored = JSON.parse(localStorage.getItem(STORE)).map(({query, page, choice}) =>
  [query.id, page.id, choice, query.digest, page.digest]);
decisions.clear();
// As older versions saved them: names alone.
loadDecisions(head + "\\nscans/a.png,c.png,1,.1,unsure\\n");
log.older = pressed();
log.olderNote = byId("count").textContent;
log.olderCsv = decisionsCsv();
""",
    )
    assert log["note"] == (
        "decisions of 1 page that is not in this file: gone.png. "
        "decisions count for each copy of a page: b.png, copy.png"
    )
    # On both sheets of each pair.
    assert sorted(log["pressed"]) == [
        ["p0", "b.png", "accept"],
        ["p0", "copy.png", "accept"],
        ["p1", "scans/a.png", "accept"],
        ["p2", "scans/a.png", "accept"],
    ]
    lines = log["csv"].splitlines()
    assert lines[0] == "query,page,rank,distance,decision,query_digest,page_digest"
    first, second = (line.split(",") for line in lines[1:])
    assert first[:2] + first[4:] == ['"scans/a.png"', '"b.png"', "accept", "0a", "0b"]
    assert second == ['"gone.png"', '"c.png"', "1", ".1", "reject", "99", "0c"]
    assert log["stored"] == [
        ["a.png", "b.png", "accept", "0a", "0b"],
        ["gone.png", "c.png", "reject", "99", "0c"],
    ]
    assert log["older"] == [["p0", "c.png", "unsure"], ["p3", "scans/a.png", "unsure"]]
    assert log["olderNote"] == "4 of 4 sheets"
    assert log["olderCsv"].splitlines()[1].endswith(",unsure,0a,0c")


@pytest.mark.browser
def test_comparing_map_and_hidden_labels(small):
    log = click_through(
        small,
        """
document.querySelector("#p2 .hits .both").click();
log.open = byId("compare").open;
log.titles = [...document.querySelectorAll(".pane .name")].map((n) => n.textContent);
log.sources = panes.map((pane) => pane.querySelector("img").getAttribute("src").slice(0, 15));
log.links = panes.map((pane) => pane.querySelector(".pane-top a").getAttribute("href"));
setScale(views[0], 2);
log.widths = panes.map((pane) => pane.querySelector(".crop").style.width);
byId("close").click();
log.closed = !byId("compare").open;
const dots = document.querySelectorAll("#mapbox circle");
log.dots = dots.length;
dots[0].dispatchEvent(new PointerEvent("pointerenter"));
log.filled = document.querySelectorAll("circle.on").length;
log.hint = byId("maphint").textContent;
dots[6].dispatchEvent(new MouseEvent("click"));
log.focus = document.activeElement.closest(".sheet").id;
const mark = () => getComputedStyle(document.querySelector(".hits .label")).visibility;
log.marks = [mark()];
byId("blind").click();
log.marks.push(mark());
""",
    )
    assert log["open"] is True
    assert log["titles"][0] == "w00/p2.png"
    assert log["sources"] == ["data:image/webp"] * 2
    assert log["links"][0] == "../pages/w00/p2.png"
    assert log["widths"] == ["120px", "120px"]
    assert log["closed"] is True
    assert log["dots"] == 22
    assert log["filled"] == 4
    assert "w00/p0.png" in log["hint"]
    assert log["focus"] == "p6"
    assert log["marks"] == ["visible", "hidden"]


@pytest.mark.browser
def test_evidence_by_click_and_keyboard(proven):
    log = click_through(
        proven,
        """
byId("evident").click();
log.sheets = sheets();
log.buttons = [...document.querySelectorAll("#p2 .looks")].map((n) => n.textContent);
document.querySelector("#p2 .hits figure").focus();
press("c");
log.before = [byId("explanation").hidden, document.querySelectorAll(".heat, .place").length];
byId("prove").click();
const crop = (i) => panes[i].querySelector(".crop");
log.note = byId("explanation").textContent;
log.pairs = [...document.querySelectorAll("#pairs .caption")].map((n) => n.textContent);
log.patches = document.querySelectorAll("#pairs li:first-child img").length;
log.heat = panes.map((pane) => pane.querySelector(".heat").src.slice(0, 10));
const filter = () => getComputedStyle(crop(0).querySelector(".original")).filter;
log.bleached = filter();
setScale(views[0], 2);
const box = (node) => [node.style.left, node.style.top, node.style.width];
log.places = [0, 1].map((i) => box(crop(i).querySelector(".place")));
document.querySelector("#pairs .pair").focus();
press("ArrowRight");
log.focus = document.activeElement.getAttribute("aria-label");
document.activeElement.click();
log.pressed = [...document.querySelectorAll("#pairs .pair")].map((n) => n.ariaPressed);
log.on = [...crop(1).querySelectorAll(".place")].map((n) => n.classList.contains("on"));
log.scale = views.map((view) => view.scale);
log.seen = views.map((view, i) => [view.x, view.y,
  ...onScreen(view, view.x, view.y).map(Math.round), ...middle(view).map(Math.round)]);
const visible = (query) => getComputedStyle(crop(0).querySelector(query)).display !== "none";
byId("heat").click();
byId("places").click();
log.visible = [visible(".heat"), visible(".place")];
log.plainly = filter();
byId("close").click();
document.querySelectorAll("#p2 .known")[1].click();
log.none = byId("pairs").textContent;
byId("close").click();
document.querySelectorAll("#p2 .both")[2].click();
log.plain = [byId("explanation").hidden, byId("noevidence").hidden, crop(0).children.length];
log.command = byId("command").textContent;
byId("close").click();
goTo("p7");
log.went = sheets().includes("p7");
""",
    )
    assert log["sheets"] == ["p2"]
    assert log["buttons"][:3] == ["compareevidence", "compareevidence", "compare"]
    # Evidence is shown on demand.
    assert log["before"] == [True, 0]
    assert "an average page here: 0.750" in log["note"]
    assert "not who wrote it" in log["note"]
    assert log["pairs"] == ["1 alike: 0.90 of 1", "2 alike: 0.50 of 1"]
    assert log["patches"] == 2
    assert log["heat"] == ["data:image"] * 2
    # A patch of 8 pixels at (10, 10) and (30, 20), at twice the size.
    assert log["places"] == [["12px", "12px", "16px"], ["52px", "32px", "16px"]]
    assert log["focus"] == "pair 2, alike: 0.50 of 1"
    assert log["pressed"] == ["false", "true"]
    assert log["on"] == [False, True]
    # 48 pixels for a patch of 8, each at its place in the middle of its pane.
    assert log["scale"] == [6, 6]
    assert [seen[:2] for seen in log["seen"]] == [[50, 30], [10, 10]]
    assert all(seen[2:4] == seen[4:] for seen in log["seen"])
    assert log["visible"] == [False, False]
    # Pages of one grey: there is no ink to tell from paper.
    assert log["bleached"] == "grayscale(1) brightness(1) contrast(1)"
    assert log["plainly"] == "none"
    assert log["none"].startswith("no patch of one page is the mutual nearest neighbour")
    assert log["plain"] == [True, False, 1]
    words = shlex.split(log["command"])
    assert words[:4] == ["python", "-m", "saghog_jax.main", "--config=configs/retrieve.py"]
    assert words[4].startswith("--config.embeddings=")
    assert words[-1] == '--config.report.evidence.of=("w00/p2.png",)'
    assert log["went"] is True


@pytest.mark.browser
def test_on_a_phone(proven):
    log = click_through(
        proven,
        """
const wide = () => document.documentElement.scrollWidth;
log.width = innerWidth;
log.page = wide();
document.querySelectorAll("details").forEach((node) => { node.open = true; });
log.opened = wide();
Object.assign(data.pages.p0, {id: "long_name/".repeat(12) + "#1,2,3,4", box: [1, 2, 3, 4]});
data.pages.p1.id = "another_long_name/".repeat(12);
refresh();
log.long = wide();
const shownAt = (at) => document.querySelector("#p0 figcaption " + at).textContent;
log.named = ["bdi", ".part"].map(shownAt);
const target = document.querySelector("#p0 .accept").getBoundingClientRect();
log.target = [target.width, target.height];
log.hits = getComputedStyle(document.querySelector(".hits")).gridTemplateColumns.split(" ").length;
document.querySelector("#p2 .known").click();
const dialog = byId("compare");
log.dialog = [dialog.getBoundingClientRect().width, dialog.scrollWidth];
log.over = panes.map((pane) => pane.scrollWidth - pane.clientWidth);
log.below = panes[1].getBoundingClientRect().top > panes[0].getBoundingClientRect().top;
byId("close").click();
const dots = document.querySelectorAll("#mapbox circle");
const touch = () => dots[7].dispatchEvent(
  new PointerEvent("click", {pointerType: "touch", bubbles: true}));
dots[7].dispatchEvent(new PointerEvent("pointerenter", {pointerType: "touch"}));
touch();
log.first = [byId("maphint").hidden, document.activeElement.closest(".sheet")?.id === "p7"];
touch();
log.second = document.activeElement.closest(".sheet")?.id;
""",
        frame=(390, 844),
    )
    assert log["width"] == 390
    # Nothing is wider than the screen (a scroll bar of the desktop takes some of it).
    assert 360 <= log["page"] <= 390
    assert log["opened"] == log["page"]
    assert log["long"] == log["page"]
    assert log["named"] == ["long_name/" * 12, "part 1, 2, 3, 4"]
    assert log["hits"] == 2
    assert min(log["target"]) >= 24
    assert max(log["dialog"]) <= log["page"]
    assert log["over"] == [0, 0]
    assert log["below"] is True
    assert log["first"] == [False, False]
    assert log["second"] == "p7"


@pytest.mark.browser
def test_map_by_keyboard(small):
    log = click_through(
        small,
        """
mapSvg.focus();
log.first = document.querySelectorAll("circle.here").length;
for (let i = 0; i < 40; i += 1) press("ArrowRight");
const before = data.points[[...document.querySelectorAll("circle")].findIndex(
  (c) => c.classList.contains("here"))];
log.further = before.x > 0.5;
log.hint = byId("maphint").textContent.includes(before.id);
press("Enter");
log.sheet = [document.activeElement.closest(".sheet").id, "p" + before.row];
""",
    )
    assert log["first"] == 1
    assert log["further"] is True
    assert log["hint"] is True
    assert log["sheet"][0] == log["sheet"][1]


@pytest.mark.browser
def test_evil_names_in_a_browser(tmp_path):
    pages = [*pages_of(2, 2), page(EVIL, "<b>w</b>", "1"), page("x.png", "<b>w</b>", "2")]
    log = click_through(
        report(tmp_path, pages, images=False),
        """
log.title = document.title;
log.images = document.querySelectorAll("img").length;
log.names = [...document.querySelectorAll(".query .name")].map((n) => n.textContent);
log.missing = document.querySelector(".missing").textContent;
""",
    )
    assert re.fullmatch(r".+/pages: 6 pages, \d{4}-\d\d-\d\d", log["title"])
    assert log["images"] == 0
    assert EVIL in log["names"]
    assert log["missing"].lower().startswith("no picture: ")


@pytest.mark.browser
def test_search_report(tmp_path):
    planted(tmp_path / "gallery", pages_of(12, 6), noise=0.3, images=True)
    (tmp_path / "new").mkdir()
    planted(tmp_path / "new" / "e", [page("n.png", "w00", "1")], noise=0.3, images=True)
    config = search_config.get_config()
    config.queries, config.gallery = str(tmp_path / "new" / "e"), str(tmp_path / "gallery")
    search.run(config.lock(), tmp_path / "out")
    log = click_through(
        tmp_path / "out" / "report.html",
        """
log.sheets = sheets();
log.shares = [...document.querySelectorAll(".share")].map((n) => n.textContent);
log.note = document.querySelector(".query .note-ap")?.textContent ?? "";
log.orders = [...byId("order").options].map((o) => o.value);
""",
    )
    assert log["sheets"] == ["q0"]
    assert len(log["shares"]) == 10
    assert all(re.fullmatch(r"one writer in [\d.]+ % of such pairs", s) for s in log["shares"])
    assert log["note"] == ""
    assert log["orders"] == ["given", "near"]


@pytest.mark.slow
def test_skipped_browser_tests_are_counted(tmp_path):
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-k", "evil_names", f"--basetemp={tmp_path / 'inner'}", __file__]
    done = subprocess.run(
        command,
        # Without `cat` joblib cannot count cores, and warns.
        env={**os.environ, "PATH": str(tmp_path), "LOKY_MAX_CPU_COUNT": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    skipped = re.search(r"(\d+) skipped", done.stdout)
    assert done.returncode == 0, done.stdout[-2000:]
    assert skipped.group(1) == "1"
    assert f"{skipped.group(1)} browser tests skipped: no Chromium found" in done.stdout


@pytest.mark.browser
def test_map_by_mouse_where_no_writer_is_known(tmp_path):
    """What lies under the mouse at the centre of each circle is that circle."""
    pages = [page(f"p{i}.png", "", str(i)) for i in range(12)]
    log = click_through(
        report(tmp_path, pages),
        """
mapSvg.scrollIntoView();
const dots = [...document.querySelectorAll("#mapbox circle")];
const under = (dot) => {
  const box = dot.getBoundingClientRect();
  return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
};
log.reached = dots.filter((dot) => dots.includes(under(dot))).length;
under(dots[3]).dispatchEvent(new PointerEvent("pointerenter"));
log.hint = [byId("maphint").hidden, byId("maphint").textContent];
log.here = document.querySelectorAll("circle.here").length;
log.filled = document.querySelectorAll("circle.on").length;
log.fill = getComputedStyle(document.querySelector("circle.here")).fill;
log.plain = getComputedStyle(document.querySelector("circle:not(.on)")).fill;
""",
    )
    assert log["reached"] == 12
    hidden, text = log["hint"]
    assert hidden is False
    # Nothing speaks of writers here.
    assert text == "p3.png"
    assert log["here"] == 1
    # The page and its ten matches.
    assert log["filled"] == 11
    assert log["fill"] != log["plain"]


@pytest.mark.browser
def test_a_copy_of_a_page_is_called_the_same_image(tmp_path):
    path = report(tmp_path, pages_of(2, 3))
    x = np.load(tmp_path / "e" / "embeddings.npy")
    x[4] = x[0]
    x[5] = x[1] + 0.02 * x[2]
    x[5] /= np.linalg.norm(x[5])
    np.save(tmp_path / "e" / "embeddings.npy", x)
    config = retrieve_config.get_config()
    config.embeddings, config.bootstrap = str(tmp_path / "e"), 0
    retrieve.run(config, tmp_path / "out")
    log = click_through(
        path,
        """
log.texts = [...document.querySelectorAll(".hits figure")].map((figure) => [
  figure.closest(".sheet").id, figure.querySelector(".name").textContent,
  figure.querySelector(".same")?.textContent]).filter((t) => t[2]);
""",
    )
    assert log["texts"] == [
        ["p0", "w01/p1.png", "duplicate: the same image"],
        ["p4", "w00/p0.png", "duplicate: the same image"],
    ]
