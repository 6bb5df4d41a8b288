"""The report: text of it by parsing, behaviour of it by clicking through it in a browser."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from places import TESTS
from planted import page, pages_of, planted
from report_helpers import data_of

from saghog_jax import retrieve, search
from saghog_jax.configs import retrieve as retrieve_config
from saghog_jax.configs import search as search_config
from saghog_jax.evidence import gather as evidence
from saghog_jax.reports.evidence import (
    Evidence,
    PageEvidence,
    _coloured,
    _density,
    _levels,
    pictures,
)
from saghog_jax.reports.projection import project
from saghog_jax.reports.thumbnails import thumbnails
from saghog_jax.retrieval.embeddings import load_embeddings

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = '</script><script>document.title="hacked"</script><img src=x onerror="hacked">.png'


def report(tmp_path, pages, name="e", images=True, **fields):
    planted(tmp_path / name, pages, images=images)
    config = retrieve_config.get_config()
    config.embeddings = str(tmp_path / name)
    config.bootstrap = 50
    for key, value in fields.items():
        setattr(config.report, key, value)
    retrieve.run(config, tmp_path / "out")
    return tmp_path / "out" / "report.html"


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def small(tmp_path):
    pages = [*pages_of(5, 4), page("odd name #1%.png", "", "1"), page("lonely.png", "only", "1")]
    return report(tmp_path, pages)


def test_sheets_say_what_the_ranking_says(small):
    data = data_of(small)
    assert len(data["sheets"]) == 22
    sheet = data["sheets"][0]
    assert sheet["q"] == "p0"
    assert len(sheet["hits"]) == 10
    assert sheet["relevant"] == 3
    for key, distance, mark, share in sheet["hits"]:
        same = data["pages"][key]["writer"] == "w00"
        known = bool(data["pages"][key]["writer"])
        assert mark == ("right" if same else "wrong" if known else "unknown")
        assert 0 <= distance <= 2
        assert share is None
    assert data["sheets"][20]["why"] == "writer unknown"
    assert data["sheets"][21]["why"] == "no relevant page in the collection"


def test_without_writers_the_sheets_are_the_result(tmp_path):
    text = report(tmp_path, [page(f"{i}.png", "", "1") for i in range(3)]).read_text()
    assert "No page has a known writer, so there are no metrics: the sheets are the result" in text
    alone = report(tmp_path, [page("a.png", "w", "1"), page("b.png", "", "1")]).read_text()
    assert "No page has a relevant page, so there are no metrics" in alone


def test_queries_with_relevant_pages_come_first(tmp_path):
    pages = [page("a.png"), page("b.png", "only"), *pages_of(2, 2), page("z.png")]
    data = data_of(report(tmp_path, pages, images=False))
    assert [sheet["row"] for sheet in data["sheets"]] == [2, 3, 4, 5, 0, 1, 6]


def test_pictures_and_links_to_originals(small, tmp_path):
    data = data_of(small)
    for about in data["pages"].values():
        assert about["image"].startswith("data:image/webp;base64,")
        assert about["size"] == [60, 40]
    odd = next(a for a in data["pages"].values() if a["id"].startswith("odd"))
    assert odd["href"] == "../pages/odd%20name%20%231%25.png"
    assert (tmp_path / "pages" / "odd name #1%.png").exists()


def test_nothing_comes_from_the_network(small):
    text = small.read_text(encoding="utf-8")
    tags = Tags(re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.S)).tags
    for tag, attrs in tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attrs.get(name) or "")
    assert "default-src 'none'" in text
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", text)


def test_names_are_shown_never_run(tmp_path):
    pages = [*pages_of(2, 2), page(EVIL, "<b>writer</b>", "1"), page("x.png", "<b>writer</b>", "2")]
    path = report(tmp_path, pages, images=False)
    text = path.read_text(encoding="utf-8")
    assert "<b>writer" not in text
    assert "<img src=x" not in text
    assert text.count("<script") == 2
    assert EVIL in [about["id"] for about in data_of(path)["pages"].values()]


def test_moved_images_are_said_and_do_not_break_the_report(tmp_path):
    pages = pages_of(3, 3)
    path = report(tmp_path, pages, images=False)
    assert "images of 9 of the 9 pages" in path.read_text()
    for about in data_of(path)["pages"].values():
        assert "no such file" in about["missing"].lower()
    again = report(tmp_path, pages, images=True)
    assert "could not be read" not in again.read_text()


def test_boxes_are_cropped(tmp_path):
    pages = [page("a.png", "w", str(i), box=(10 * i, 0, 10 * i + 10, 40)) for i in range(4)]
    pages.append(page("a.png", "w", "out", box=(100, 100, 120, 120)))
    planted(tmp_path / "e", pages, images=True)
    made = thumbnails(load_embeddings(tmp_path / "e"), range(5), 320, 10**6)
    assert [made[i]["size"] for i in range(4)] == [(10, 40)] * 4
    assert made[4] == {"missing": "box outside of the image"}


def test_thumbnails_are_bounded(tmp_path):
    e = planted(tmp_path / "e", pages_of(1, 2), images=True)
    small, large = (len(thumbnails(e, [0], side, 10**6)[0]["image"]) for side in (20, 320))
    assert small < large
    assert "missing" in thumbnails(e, [0], 320, 100)[0]


def test_large_collections_are_paged(tmp_path):
    path = report(tmp_path, pages_of(10, 3), images=False, queries_per_file=8, max_queries=20)
    names = ["report.html", "report_2.html", "report_3.html"]
    parts = [data_of(path.parent / name) for name in names]
    assert [len(part["sheets"]) for part in parts] == [8, 8, 4]
    aps = [sheet["ap"] for part in parts for sheet in part["sheets"]]
    assert aps == sorted(aps)
    assert "the hardest 20 of 30 queries" in path.read_text()
    where = {p["row"]: p["file"] for p in parts[0]["points"]}
    assert len(where) == 30
    for name, part in zip(names, parts):
        assert all(where[sheet["row"]] == name for sheet in part["sheets"])
    # Parts of an earlier, larger report do not stay.
    report(tmp_path, pages_of(10, 3), images=False)
    assert sorted(p.name for p in path.parent.glob("*.html")) == ["report.html"]


def test_a_few_megabytes_for_a_few_hundred_pages(tmp_path):
    path = report(tmp_path, pages_of(50, 4), map_pages=0)
    assert path.stat().st_size < 1_000_000


def test_map_is_of_the_collection(tmp_path):
    points = data_of(report(tmp_path, pages_of(6, 4), images=False))["points"]
    assert [p["row"] for p in points] == list(range(24))
    few = data_of(report(tmp_path, pages_of(6, 4), images=False, map_pages=5))["points"]
    assert [p["row"] for p in few] == [0, 5, 11, 17, 23]


@pytest.mark.parametrize(("p", "d"), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 9), (60, 8), (30, 200)])
def test_projection_of_any_number_of_pages(p, d):
    x = np.random.default_rng(0).standard_normal((p, d)).astype(np.float32)
    points = project(x)
    assert points.shape == (p, 2)
    assert np.isfinite(points).all()
    assert ((points >= 0) & (points <= 1)).all()


def test_curve_and_spread_are_those_of_the_figures(small):
    head = small.read_text(encoding="utf-8").split("<main>")[0]
    bars = re.findall(r'<rect class="bar-ap"[^>]*/><text[^>]*>(\d*)</text>', head)
    aps = [sheet["ap"] for sheet in data_of(small)["sheets"] if "ap" in sheet]
    assert [int(n or 0) for n in bars] == np.histogram(aps, bins=10, range=(0, 1))[0].tolist()
    # What follows is of this line: the full one.
    assert re.findall(r'<polyline class="line (l\d)"', head) == ["l2"]


def evidence_of(e, row, other, pairs=((0, 1), (2, 0))):
    """Evidence of three patches a page of 60 x 40 pixels, the first of them against the match."""
    side = evidence_of_page()
    cosines = np.array([0.9, 0.5], np.float32)[: len(pairs)]
    x = e.descriptors
    similarity = float(x[row] @ x[other])
    return Evidence(similarity, side, side, np.array(pairs).reshape(-1, 2), cosines)


@pytest.fixture
def proven(tmp_path, monkeypatch):
    """A report in which the first two matches of page 2 have evidence, the second without pairs."""

    def gather(compared, order, config, workdir):
        first, second, *_ = (other for other, _ in compared.ranking.hits(2))
        e = compared.queries
        return {(2, first): evidence_of(e, 2, first), (2, second): evidence_of(e, 2, second, ())}

    monkeypatch.setattr(evidence, "gather", gather)
    return report(tmp_path, pages_of(5, 4))


def test_evidence_becomes_pictures(proven):
    data = data_of(proven)
    assert list(data["evidence"]) == ["p2"]
    sheet = data["sheets"][2]
    first, second = (data["evidence"]["p2"][hit[0]] for hit in sheet["hits"][:2])
    assert [pair[0] for pair in first["pairs"]] == [0.9, 0.5]
    assert [patch[:2] for patch in first["pairs"][0][1:]] == [[10, 10], [30, 20]]
    assert first["sides"] == [8, 8]
    assert second["pairs"] == []
    density, at = _density(evidence_of_page(), (40, 60))
    assert density.shape == (160, 240)
    assert at.tolist() == [density[y, x] for y, x in ((40, 40), (80, 120), (120, 200))]
    assert density[40, 40] < 0 < density[80, 120] < density[120, 200]
    np.testing.assert_allclose(density.sum(), 0.4, atol=1e-2)
    colours = _coloured(np.array([[-1.0, 0.0, 2.0]]), 1.0)
    assert colours[0].tolist() == [[20, 110, 220], [0, 0, 0], [230, 97, 1]]


PARCHMENT, WHITE, FADED = (205, 180, 140), (255, 255, 255), (150, 140, 120)


@pytest.mark.parametrize(
    ("paper", "ink"), [(PARCHMENT, (95, 65, 40)), (WHITE, (0, 0, 0)), (FADED, (120, 100, 80))]
)
def test_paper_becomes_white_and_ink_black_under_the_colours(paper, ink):
    rng = np.random.default_rng(0)
    image = np.full((60, 90, 3), paper, np.uint8)
    image[::5] = ink
    # What is no page, and is not looked at, far from all patches.
    image[:, 60:] = 0
    image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    place = np.array([[10, 10], [30, 20], [40, 45]])
    brightness, contrast = _levels(image, place, 16)

    def shown(colour):
        grey = np.dot(colour, [0.2126, 0.7152, 0.0722]) / 255
        return np.clip((min(1, brightness * grey) - 0.5) * contrast + 0.5, 0, 1)

    assert shown(paper) > 0.98
    assert shown(ink) < 0.1
    # Nothing to tell apart: the picture stays as it is.
    assert _levels(np.full((60, 90, 3), 200, np.uint8), place, 16) == (1, 1)


def evidence_of_page():
    place = np.array([[10, 10], [30, 20], [50, 30]])
    return PageEvidence(place, np.full(3, 8.0), np.array([-0.1, 0.2, 0.3], np.float32), 0.25)


def test_evidence_of_pages_whose_images_are_gone_is_left_out(proven, tmp_path):
    e = load_embeddings(tmp_path / "e")
    found = {(2, 3): evidence_of(e, 2, 3), (4, 5): evidence_of(e, 4, 5)}
    e.image(5).unlink()
    assert list(pictures(e, e, found, 10**6)) == [(2, 3)]


def test_projection_keeps_writers_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 8)
    x = rng.standard_normal((6, 30))[labels] + 0.3 * rng.standard_normal((48, 30))
    points = project(x.astype(np.float32))
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (labels[gaps.argmin(1)] == labels).mean() > 0.9


# What the browser does: the report with a script behind it that clicks, types and looks.
LOOK = """
<script>
const log = {};
function press(key) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
}
function type(id, value) {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event(id === "order" ? "change" : "input"));
}
const sheets = () => [...document.querySelectorAll(".sheet")].map((s) => s.id);
%s
document.body.innerHTML = "";
const out = Object.assign(document.createElement("pre"), {textContent: JSON.stringify(log)});
document.body.append(out);
parent.postMessage(out.textContent, "*");
</script>
"""
# A window is at least 500 pixels wide, a frame in it as narrow as a phone.
FRAME = """
<!doctype html>
<script>
addEventListener("message", (event) => {
  const out = Object.assign(document.createElement("pre"), {textContent: event.data});
  document.body.replaceChildren(out);
});
</script>
<iframe src="%s" width="%d" height="%d" style="border: 0"></iframe>
"""


def click_through(path, script, frame=None):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    looked = path.with_name("looked_" + path.name)
    looked.write_text(path.read_text(encoding="utf-8") + LOOK % script, encoding="utf-8")
    if frame:
        inner, looked = looked, path.with_name("frame_" + path.name)
        looked.write_text(FRAME % (inner.name, *frame), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=3000"] if frame else []
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [*command, profile, looked.as_uri()], capture_output=True, text=True, timeout=240
    )
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))


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
log.found = sheets();
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
    assert log["found"] == ["p12", "p13", "p14", "p15"]
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
press("u");
press("k");
document.querySelectorAll("#p3 .hits .accept")[2].click();
document.querySelectorAll("#p3 .hits .accept")[3].click();
document.querySelectorAll("#p3 .hits .accept")[3].click();
log.pressed = document.querySelectorAll('[aria-pressed="true"]').length;
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
        ('"w00/p1.png"', "1", "unsure"),
        ('"w00/p3.png"', "3", "accept"),
    ]
    assert log["pressed"] == 4
    assert log["decided"] == "4"
    assert log["stored"] == 4
    assert log["download"] == "decisions.csv"
    assert log["size"] == len(log["csv"])
    assert log["loaded"] == log["csv"].replace(",reject", ",accept")
    assert log["refused"].startswith("not a decisions.csv")


@pytest.mark.browser
def test_comparing_map_and_hidden_labels(small):
    log = click_through(
        small,
        """
document.querySelector("#p2 .hits .both").click();
log.open = byId("compare").open;
log.titles = [...document.querySelectorAll(".pane .name")].map((n) => n.textContent);
log.sources = panes.map((pane) => pane.querySelector("img").getAttribute("src"));
byId("zoom").value = "1";
byId("zoom").dispatchEvent(new Event("input"));
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
    assert log["titles"][0] == "query w00/p2.png"
    assert log["sources"][0] == "../pages/w00/p2.png"
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
log.buttons = [...document.querySelectorAll("#p2 .both")].map((n) => n.textContent);
document.querySelector("#p2 .hits figure").focus();
press("c");
const crop = (i) => panes[i].querySelector(".crop");
log.said = byId("comparesaid").textContent;
log.pairs = [...document.querySelectorAll("#pairs .caption")].map((n) => n.textContent);
log.patches = document.querySelectorAll("#pairs li:first-child img").length;
log.heat = panes.map((pane) => pane.querySelector(".heat").src.slice(0, 10));
const filter = () => getComputedStyle(crop(0).querySelector(".original")).filter;
log.bleached = filter();
byId("zoom").value = "1";
byId("zoom").dispatchEvent(new Event("input"));
const box = (node) => [node.style.left, node.style.top, node.style.width];
log.places = [0, 1].map((i) => box(crop(i).querySelector(".place")));
document.querySelector("#pairs .pair").focus();
press("ArrowRight");
log.focus = document.activeElement.getAttribute("aria-label");
document.activeElement.click();
log.pressed = [...document.querySelectorAll("#pairs .pair")].map((n) => n.ariaPressed);
log.on = [...crop(1).querySelectorAll(".place")].map((n) => n.classList.contains("on"));
log.zoom = Number(byId("zoom").value);
const seen = (query) => getComputedStyle(crop(0).querySelector(query)).display !== "none";
byId("heat").click();
byId("places").click();
log.seen = [seen(".heat"), seen(".place")];
log.plainly = filter();
byId("close").click();
document.querySelectorAll("#p2 .both")[1].click();
log.none = byId("pairs").textContent;
byId("close").click();
document.querySelectorAll("#p2 .both")[2].click();
log.plain = [byId("comparesaid").hidden, byId("noevidence").hidden, crop(0).children.length];
byId("close").click();
goTo("p7");
log.went = sheets().includes("p7");
""",
    )
    assert log["sheets"] == ["p2"]
    assert log["buttons"][:3] == ["evidence", "evidence", "compare"]
    assert "an average page here: 0.750" in log["said"]
    assert "not who wrote it" in log["said"]
    assert log["pairs"] == ["1 cosine 0.90", "2 cosine 0.50"]
    assert log["patches"] == 2
    assert log["heat"] == ["data:image"] * 2
    # A patch of 8 pixels at (10, 10) and (30, 20), at twice the size.
    assert log["places"] == [["12px", "12px", "16px"], ["52px", "32px", "16px"]]
    assert log["focus"] == "pair 2, cosine 0.50"
    assert log["pressed"] == ["false", "true"]
    assert log["on"] == [False, True]
    assert log["zoom"] == 2
    assert log["seen"] == [False, False]
    # Pages of one grey: there is no ink to tell from paper.
    assert log["bleached"] == "grayscale(1) brightness(1) contrast(1)"
    assert log["plainly"] == "none"
    assert log["none"].startswith("no patches of the two")
    assert log["plain"] == [True, False, 1]
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
    assert log["title"] == "Retrieval: e"
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
log.said = document.querySelector(".query .note-ap")?.textContent ?? "";
log.orders = [...byId("order").options].map((o) => o.value);
""",
    )
    assert log["sheets"] == ["q0"]
    assert len(log["shares"]) == 10
    assert all(re.fullmatch(r"one writer in [\d.]+ % of such pairs", s) for s in log["shares"])
    assert log["said"] == ""
    assert log["orders"] == ["given", "near"]


@pytest.mark.slow
def test_skipped_browser_tests_are_counted(tmp_path):
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    here = TESTS
    done = subprocess.run(
        [*command, "-k", "evil_names", f"--basetemp={tmp_path / 'inner'}", here / "test_report.py"],
        # Without `cat` joblib cannot count cores, and warns.
        env={**os.environ, "PATH": str(tmp_path), "LOKY_MAX_CPU_COUNT": "1"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    skipped = re.search(r"(\d+) skipped", done.stdout)
    assert done.returncode == 0, done.stdout[-2000:]
    assert skipped.group(1) == "1"
    assert f"{skipped.group(1)} browser tests skipped: no Chromium found" in done.stdout
