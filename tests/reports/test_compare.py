"""Comparing two pages in a browser: moving, zooming, turning, deciding, and the next match."""

import pytest
from planted import page, pages_of
from report_helpers import click_through, report

# A mouse, a wheel and fingers.
HANDS = """
const area = (i) => views[i].area;
const send = (i, kind, id, x, y, more = {}) => {
  const box = area(i).getBoundingClientRect();
  area(i).dispatchEvent(new PointerEvent(kind, {pointerId: id, bubbles: true, cancelable: true,
    clientX: box.left + x, clientY: box.top + y, ...more}));
};
const state = () => views.map(({x, y, scale, turn}) => [x, y, scale, turn]);
const at = (i, x, y) => onScreen(views[i], x, y);
const key = (key) => area(0).dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
"""


@pytest.mark.browser
def test_pages_move_and_zoom_together_or_apart(small):
    log = click_through(
        small,
        HANDS
        + """
document.querySelector("#p2 .hits .picture").click();
log.whole = state();
log.fits = views.map((view) => [0, 1].map((k) => {
  const [left, top] = onScreen(view, 0, 0);
  const [right, bottom] = onScreen(view, ...view.page.size);
  const {clientWidth, clientHeight} = view.area;
  return left >= 0 && top >= 0 && right <= clientWidth && bottom <= clientHeight;
}));
byId("actual").click();
log.actual = state();
// A drag moves both by the same way.
const places = [at(0, 10, 10), at(1, 10, 10)];
send(0, "pointerdown", 1, 100, 100);
send(0, "pointermove", 1, 110, 95);
send(0, "pointerup", 1, 110, 95);
send(0, "pointermove", 1, 300, 300);
log.dragged = [0, 1].map((i) => at(i, 10, 10).map((n, k) => Math.round(n - places[i][k])));
// The wheel leaves the point below the mouse, which has whole pixels, where it is.
const box = area(0).getBoundingClientRect();
const point = [3, 7];
const [px, py] = at(0, ...point);
area(0).dispatchEvent(new WheelEvent("wheel", {deltaY: -300, clientX: box.left + px,
  clientY: box.top + py, cancelable: true}));
log.wheel = [state()[0][2] > 1.3, state()[0][2] === state()[1][2],
  at(0, ...point).map((n, k) => Math.abs(n - [px, py][k]) < 1)];
// Two fingers.
byId("actual").click();
byId("together").click();
send(1, "pointerdown", 1, 100, 100, {pointerType: "touch"});
send(1, "pointerdown", 2, 200, 100, {pointerType: "touch"});
send(1, "pointermove", 2, 300, 100, {pointerType: "touch"});
send(1, "pointerup", 1, 100, 100);
send(1, "pointerup", 2, 300, 100);
log.pinch = state().map((s) => s[2]);
key("+");
log.alone = state().map((s) => s[2]);
key("l");
key("+");
log.both = state().map((s) => s[2]);
key("0");
log.again = state();
key("ArrowLeft");
log.arrow = [0, 1].map((i) => state()[i][0] < log.again[i][0]);
""",
    )
    (x, y, scale, turn), other = log["whole"]
    assert (x, y, turn) == (30, 20, 0)
    assert other[2] == scale > 1
    assert log["fits"] == [[True, True]] * 2
    assert [state[2] for state in log["actual"]] == [1, 1]
    assert log["dragged"] == [[10, -5], [10, -5]]
    assert log["wheel"] == [True, True, [True, True]]
    assert log["pinch"] == [1, 2]
    assert log["alone"] == [1.25, 2]
    # Together again, they keep their proportion.
    assert log["both"] == [1.25**2, 2.5]
    assert [state[2] for state in log["again"]] == [scale, scale]
    assert log["arrow"] == [True, True]


@pytest.mark.browser
def test_turning_and_stacking(small):
    log = click_through(
        small,
        HANDS
        + """
compare(data.sheets[2], 0);
key("1");
const [a, b] = [at(0, 30, 20), at(0, 40, 20)];
log.before = [b[0] - a[0], b[1] - a[1]];
document.querySelector(".pane .turn").click();
const [c, d] = [at(0, 30, 20), at(0, 40, 20)];
log.after = [d[0] - c[0], d[1] - c[1]];
log.turns = [views.map(({turn}) => turn), views[0].crop.style.transform.endsWith("rotate(90deg)")];
const place = [...at(0, 30, 20)];
send(0, "pointerdown", 1, 50, 50);
send(0, "pointermove", 1, 60, 50);
send(0, "pointerup", 1, 60, 50);
log.dragged = at(0, 30, 20).map((n, k) => Math.round(n - place[k]));
key("T");
log.back = views.map(({turn}) => turn);
const tops = () => panes.map((pane) => pane.getBoundingClientRect().top);
const stacked = [byId("stacked").checked, tops()[0] < tops()[1]];
key("s");
log.stacked = [stacked, [byId("stacked").checked, tops()[0] < tops()[1]]];
goMatch(1);
log.kept = byId("stacked").checked;
""",
    )
    assert log["before"] == [10, 0]
    assert log["after"] == [0, 10]
    assert log["turns"] == [[90, 0], True]
    assert log["dragged"] == [10, 0]
    assert log["back"] == [0, 0]
    # Pages of 60 x 40 pixels are wide.
    assert log["stacked"] == [[True, True], [False, False]]
    assert log["kept"] is False


@pytest.mark.browser
def test_deciding_while_comparing(small):
    log = click_through(
        small,
        HANDS
        + """
compare(data.sheets[2], 0);
const titles = () => [views[0].page.id, views[1].page.id, byId("which").textContent,
  byId("previous").disabled, byId("next").disabled];
log.first = titles();
key("a");
key("n");
log.second = titles();
key("u");
byId("note").value = "long s";
byId("note").dispatchEvent(new Event("change"));
goMatch(1);
byId("note").value = "alone";
byId("note").dispatchEvent(new Event("change"));
log.csv = decisionsCsv();
key("z");
log.undone = decisionsCsv();
key("p");
log.note = byId("note").value;
log.pressed = byId("judge").querySelector('[aria-pressed="true"]').textContent;
key("j");
log.sheet = [compared.sheet.q, compared.at];
compare(data.sheets[2], 9);
log.last = titles();
goMatch(1);
log.still = compared.at;
byId("note").dispatchEvent(new KeyboardEvent("keydown", {key: "r", bubbles: true}));
log.typed = decisionOn(compared.query, compared.page);
byId("close").click();
log.noted = document.querySelectorAll("#p2 .noted")[1].textContent;
""",
    )
    assert log["first"][0] == "w00/p2.png"
    assert log["first"][2].startswith("match 1 of 10 · distance 0.")
    assert log["first"][3:] == [True, False]
    assert log["second"][2].startswith("match 2 of 10")
    assert log["second"][3:] == [False, False]
    lines = [line.split(",") for line in log["csv"].splitlines()]
    assert lines[0][4:] == ["decision", "note"]
    assert [line[4:] for line in lines[1:]] == [
        ["accept", '""'],
        ["unsure", '"long s"'],
        # A note alone is unsure: the file has a decision in each line.
        ["unsure", '"alone"'],
    ]
    assert log["undone"] == "".join(f"{line}\n" for line in log["csv"].splitlines()[:3])
    assert log["note"] == "long s"
    assert log["pressed"] == "unsure"
    assert log["sheet"] == ["p3", 0]
    assert log["last"][3:] == [False, True]
    assert log["still"] == 9
    assert "typed" not in log
    assert log["noted"] == "long s"


@pytest.mark.browser
def test_the_command_names_all_that_has_evidence(proven):
    log = click_through(
        proven,
        """
data.pages.p5.id = `it's "5".png`;
compare(data.sheets[5], 4, true);
log.hidden = byId("noevidence").hidden;
log.command = byId("command").textContent;
byId("prove").click();
log.off = byId("noevidence").hidden;
""",
    )
    assert log["hidden"] is False
    assert log["command"].endswith(
        """ --config.report.evidence.of='("w00/p2.png", "it'\\''s \\"5\\".png",)'"""
        " --config.report.evidence.matches=5"
    )
    assert log["off"] is True


@pytest.mark.browser
def test_numbers_of_pairs_stand_beside_the_page(proven):
    log = click_through(
        proven,
        """
document.querySelector("#p2 .known").click();
const boxes = (selector) => [...panes[0].querySelectorAll(selector)].map((n) =>
  n.getBoundingClientRect());
const right = Math.max(...boxes(".number").map((box) => box.right));
log.beside = right <= boxes(".area")[0].left;
log.inside = panes[0].querySelectorAll(".place *").length;
const tops = boxes(".number").map((box) => box.top).sort((a, b) => a - b);
log.apart = tops.every((top, i) => !i || top - tops[i - 1] >= 18);
panes[0].querySelectorAll(".number")[1].click();
log.chosen = [...panes[1].querySelectorAll(".place")].map((n) => n.classList.contains("on"));
""",
    )
    assert log == {"beside": True, "inside": 0, "apart": True, "chosen": [False, True]}


@pytest.mark.browser
def test_the_original_replaces_an_enlarged_picture(tmp_path):
    pages = [page(f"{i}.png", "", "1") for i in range(3)]
    script = """
data.pages.p1.plain = false;
compare(data.sheets[0], 0);
setScale(views[0], 0.1);
log.small = views[0].image.src.slice(0, 5);
views[0].source = 30;
setScale(views[0], 1);
log.asked = data.pages.p0.asked;
data.pages.p0.full = [60, 40];
draw(views[0]);
log.large = views[0].image.getAttribute("src");
compare(data.sheets[1], 0);
views[0].source = 30;
setScale(views[0], 4);
log.turned = data.pages.p1.asked || false;
"""
    log = click_through(report(tmp_path, pages), script)
    assert log["small"] == "data:"
    assert log["asked"] is True
    assert log["large"] == "../pages/0.png"
    # The file shows another image, or the image in another position.
    assert log["turned"] is False


@pytest.mark.browser
def test_where_the_list_falls_off(tmp_path):
    log = click_through(
        report(tmp_path, pages_of(3, 3)),
        """
const hits = (...list) => list.map(([d, same]) => ["p1", d, "right", null, Boolean(same)]);
log.falls = [
  fallOf(hits([0.1], [0.12], [0.3], [0.31])), fallOf(hits([0.1], [0.2], [0.3])),
  fallOf(hits([0, true], [0.3], [0.32], [0.4])), fallOf(hits([0.1])), fallOf([]),
];
const sheet = data.sheets[0];
sheet.hits.forEach((h, i) => { h[1] = i < 2 ? 0.1 + i / 100 : 0.5 + i / 100; });
sheet.average = 0.8;
refresh();
log.list = [...document.querySelectorAll("#p0 .hits > li")].slice(0, 4).map((n) => n.className);
log.gap = document.querySelector("#p0 .gap").textContent;
const left = (selector) => [...document.querySelectorAll("#p0 .ruler " + selector)].map((n) =>
  parseFloat(n.style.left) / 100 * 0.8 * 1.04);
log.ticks = left(".tick").slice(0, 3).map((d) => d.toFixed(2));
log.average = [left(".average")[0].toFixed(2), document.querySelector("#p0 .average").textContent];
document.querySelectorAll("#p0 .tick")[2].click();
log.focus = document.activeElement.dataset.key === sheet.hits[2][0];
""",
    )
    assert log["falls"] == [1, -1, 2, -1, -1]
    assert log["list"] == ["", "", "gap", "after"]
    assert log["gap"] == "Largest step of the list: 0.110 → 0.520"
    assert log["ticks"] == ["0.10", "0.11", "0.52"]
    assert log["average"] == ["0.80", "average page 0.800"]
    assert log["focus"] is True
