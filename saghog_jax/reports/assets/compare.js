// Compares a query with one of its matches: two pages at one scale, the decision, and the evidence.
//
// `compared` is the match that is shown: {sheet, at, query, page, evidence}.
let compared = null;
// Whether evidence is shown where there is some, and how the panes lie, if somebody chose.
let proving = false;
let stacking = null;
let chosenPair = -1;
const compareBox = byId("compare");
const panes = views.map((view) => view.pane);
// Least distance between the numbers of two pairs at the edge of a pane, in pixels.
const NUMBER = 19;

function compare(sheet, at, prove = proving) {
  const found = sheet.hits[at];
  if (!found) return;
  const earlierScale = compareBox.open && !views.every((view) => view.whole) ? views.map((view) => view.scale) : null;
  const [query, page] = [sheet.q, found[0]].map((key) => data.pages[key]);
  const sameQuery = compared?.query === query && compareBox.open;
  compared = { sheet, at, query, page, evidence: evidenceOf(sheet)[found[0]] || null };
  chosenPair = -1;
  byId("judge").replaceChildren(decisionButtons(query, page));
  describe();
  if (!compareBox.open) compareBox.showModal();
  // Wide pages, such as lines of writing, have more room one above the other.
  const wide = [query, page].every(({ size }) => size && size[0] > 1.4 * size[1]);
  byId("stacked").checked = stacking ?? (wide || innerWidth < 700);
  compareBox.classList.toggle("stacked", byId("stacked").checked);
  const kept = sameQuery && { ...views[0] };
  views.forEach((view, i) => showPage(view, i ? page : query));
  showEvidence(prove);
  showWhole(views[0]);
  if (!byId("together").checked) showWhole(views[1]);
  // The next match is shown at the scale of the last one; the query stays where it was.
  if (earlierScale) views.forEach((view, i) => Object.assign(view, { scale: earlierScale[i], whole: false }));
  if (kept) Object.assign(views[0], { x: kept.x, y: kept.y, turn: kept.turn });
  views.forEach(draw);
  moved();
}

function describe() {
  const { sheet, at, query, page } = compared;
  const [, distance, mark, , same] = sheet.hits[at];
  const which = byId("which");
  which.replaceChildren(element("span", "", say("which", { rank: at + 1, n: sheet.hits.length, distance: distanceText(distance) })));
  if (same) which.append(" · ", element("b", "", say("same")));
  if (someLabels) which.append(" ", element("span", "mark label " + mark, say("mark." + mark)));
  byId("previous").disabled = at === 0;
  byId("next").disabled = at === sheet.hits.length - 1;
  showJudgement();
}

function showJudgement() {
  if (!compared) return;
  byId("judge").firstChild?.refresh();
  if (document.activeElement !== byId("note")) {
    byId("note").value = decisionOn(compared.query, compared.page)?.note || "";
  }
}

// Another match of the query, or (by sheets) the nearest match of another query.
const goMatch = (by) => compare(compared.sheet, compared.at + by);
function goSheet(by) {
  const at = shown.indexOf(compared.sheet) + by;
  if (shown[at]?.hits.length) compare(shown[at], 0);
}

function showEvidence(on) {
  proving = on;
  byId("prove").checked = on;
  const { evidence } = compared;
  const seen = on && Boolean(evidence);
  compareBox.querySelectorAll(".of-evidence").forEach((node) => { node.hidden = !seen; });
  byId("noevidence").hidden = !on || seen || !data.proof.command;
  byId("command").textContent = data.proof.command ? commandOfEvidence() : "";
  views.forEach((view, i) => {
    view.pane.querySelectorAll(".heat, .place, .number").forEach((node) => node.remove());
    view.gutter.hidden = !seen || !evidence.pairs.length;
    view.image.style.removeProperty("--levels");
    if (seen) addEvidence(view, evidence, i);
  });
  showPairs(seen ? evidence : null);
  relay();
}

function addEvidence(view, evidence, i) {
  const [brightness, contrast] = evidence.levels[i];
  view.image.style.setProperty("--levels", `grayscale(1) brightness(${brightness}) contrast(${contrast})`);
  const heat = element("img", "heat");
  heat.alt = "";
  heat.draggable = false;
  heat.src = evidence.heat[i];
  view.crop.append(heat);
  evidence.pairs.forEach((pair, at) => {
    const place = element("div", "place");
    place.addEventListener("click", () => choosePair(at, false));
    view.crop.append(place);
    const number = button("number", at + 1, () => choosePair(at));
    number.tabIndex = -1;
    view.gutter.append(number);
  });
}

// The command that made this report, with evidence for this match too.
function commandOfEvidence() {
  const of = [...new Set([...data.proof.of, compared.query.id])];
  const tuple = `(${of.map((id) => JSON.stringify(id)).join(", ")},)`;
  const inShell = `'${tuple.replaceAll("'", "'\\''")}'`;
  const rank = compared.at + 1;
  const matches = rank > data.proof.matches ? ` --config.report.evidence.matches=${rank}` : "";
  return `${data.proof.command} --config.report.evidence.of=${inShell}${matches}`;
}

function showPairs(evidence) {
  const list = byId("pairs");
  list.replaceChildren();
  if (!evidence) return;
  const [near, mean] = [1 - evidence.similarity, 1 - evidence.means[0]].map((d) => d.toFixed(3));
  byId("explanation").querySelector(".numbers").textContent = say("evidence.numbers", { near, mean });
  evidence.pairs.forEach(([alike, ...patches], at) => {
    const values = { at: at + 1, alike: alike.toFixed(2) };
    const node = button("pair", undefined, () => choosePair(at));
    node.setAttribute("aria-label", say("pair", values));
    patches.forEach(([, , source]) => {
      const patch = element("span", "patch");
      const image = element("img");
      image.alt = "";
      image.src = source;
      patch.append(image, element("span", "frame"));
      node.append(patch);
    });
    const caption = element("span", "caption");
    caption.append(element("b", "", at + 1), " " + say("alike", values));
    node.append(caption);
    const item = element("li");
    item.append(node);
    list.append(item);
  });
  if (!evidence.pairs.length) list.append(element("li", "soft", say("pairs.none")));
}

// Moves both pages to the places of a pair, and enlarges them if necessary.
function choosePair(at, move = true) {
  chosenPair = at;
  const { evidence } = compared;
  if (move) {
    const least = 48 / Math.min(...evidence.sides);
    views.forEach((view, i) => {
      const [x, y] = evidence.pairs[at][1 + i];
      Object.assign(view, { x, y, scale: Math.max(view.scale, least), whole: false });
      draw(view);
    });
  }
  moved();
}

// Puts the frames of the pairs on the pages, and their numbers at the edges, beside the writing.
function placePairs() {
  if (!compareBox.open || !compared) return;
  byId("scale").textContent = say("scale", { percent: views.map((view) => Math.round(100 * view.scale))
    .filter((n, i, all) => !i || n !== all[0]).join(" / ") });
  const evidence = proving && compared.evidence;
  byId("pairs").querySelectorAll(".pair").forEach((node, at) => node.setAttribute("aria-pressed", at === chosenPair));
  if (!evidence) return;
  views.forEach((view, i) => {
    // On a whole page, the frame of a small patch would fill it.
    const side = Math.max(evidence.sides[i] * view.scale, 10);
    view.crop.classList.toggle("distant", side < 14);
    view.crop.querySelectorAll(".place").forEach((node, at) => {
      const [x, y] = evidence.pairs[at][1 + i];
      node.style.width = node.style.height = `${side}px`;
      node.style.left = `${x * view.scale - side / 2}px`;
      node.style.top = `${y * view.scale - side / 2}px`;
      node.classList.toggle("on", at === chosenPair);
    });
    const high = view.area.clientHeight;
    const numbers = [...view.gutter.children];
    const at = numbers.map((node, k) => ({ node, k, y: onScreen(view, ...evidence.pairs[k][1 + i])[1] }));
    at.sort((a, b) => a.y - b.y);
    let below = -Infinity;
    at.forEach(({ node, k, y }) => {
      node.hidden = y < 0 || y > high;
      node.classList.toggle("on", k === chosenPair);
      if (node.hidden) return;
      below = Math.max(y - NUMBER / 2, below + NUMBER);
      node.style.top = `${below}px`;
    });
  });
}

function lay(stacked) {
  stacking = stacked;
  byId("stacked").checked = stacked;
  compareBox.classList.toggle("stacked", stacked);
  relay();
}

const activeView = () => views.find((view) => view.pane.contains(document.activeElement)) || views[0];
const MOVES = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
const flip = (name) => byId(name).click();
const COMPARE_KEYS = {
  n: () => goMatch(1), p: () => goMatch(-1), j: () => goSheet(1), k: () => goSheet(-1),
  "+": () => zoomAt(activeView(), 1.25), "=": () => zoomAt(activeView(), 1.25),
  "-": () => zoomAt(activeView(), 0.8), 0: () => showWhole(activeView()), 1: () => setScale(activeView(), 1),
  t: () => turnView(activeView()), T: () => turnView(activeView(), -90),
  l: () => flip("together"), s: () => flip("stacked"), e: () => flip("prove"), z: undo,
  m: () => byId("note").focus(), "?": () => flip("help"),
};

document.addEventListener("decided", showJudgement);
document.addEventListener("moved", placePairs);
addEventListener("resize", () => { if (compareBox.open) relay(); });
views.forEach((view) => view.image.addEventListener("load", () => draw(view)));
compareBox.addEventListener("close", () => {
  keepNote();
  const figure = document.querySelector(`#${compared.sheet.q} .hits figure[data-key="${compared.page && compared.sheet.hits[compared.at][0]}"]`);
  if (!figure) goTo(compared.sheet.q);
  else figure.focus();
});
byId("previous").addEventListener("click", () => goMatch(-1));
byId("next").addEventListener("click", () => goMatch(1));
byId("close").addEventListener("click", () => compareBox.close());
byId("takeback").addEventListener("click", undo);
byId("whole").addEventListener("click", () => showWhole(activeView()));
byId("actual").addEventListener("click", () => setScale(activeView(), 1));
byId("larger").addEventListener("click", () => zoomAt(activeView(), 1.25));
byId("smaller").addEventListener("click", () => zoomAt(activeView(), 0.8));
byId("stacked").addEventListener("change", (event) => lay(event.target.checked));
byId("prove").addEventListener("change", (event) => showEvidence(event.target.checked));
byId("help").addEventListener("click", () => {
  byId("helptext").hidden = !byId("helptext").hidden;
  byId("help").setAttribute("aria-expanded", !byId("helptext").hidden);
  relay();
});
const keepNote = () => annotate(compared.query, compared.page, byId("note").value.trim());
byId("note").addEventListener("change", keepNote);
byId("note").addEventListener("keydown", (event) => {
  event.stopPropagation();
  if (event.key === "Enter") views[0].area.focus();
});
byId("copy").addEventListener("click", async () => {
  getSelection().selectAllChildren(byId("command"));
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
  } catch {
    document.execCommand("copy");
  }
  byId("copy").textContent = say("copied");
});
["heat", "places"].forEach((name) => byId(name).addEventListener("change", (event) =>
  compareBox.classList.toggle("no-" + name, !event.target.checked)));
compareBox.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input:not([type="checkbox"])')) return;
  const { key } = event;
  const choice = Object.keys(DECISIONS).find((name) => DECISIONS[name] === key);
  if (event.target.closest("#pairs") && (key === "ArrowRight" || key === "ArrowLeft")) {
    step("#pairs .pair", event.target, key === "ArrowRight" ? 1 : -1)?.focus();
  } else if (choice) decide(compared.query, compared.page, choice);
  else if (key in MOVES) moveBy(activeView(), ...MOVES[key]);
  else if (key in COMPARE_KEYS) COMPARE_KEYS[key]();
  else return;
  event.preventDefault();
  event.stopPropagation();
});
