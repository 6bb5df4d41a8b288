// Shows the sheets: each query with its nearest pages, the distances as a ruler, and decisions.
const BATCH = 20;
const MARKS = ["right", "wrong", "unknown"];
// A step of the distances that is so many times the next largest is shown.
const FALL = 2;

function picture(page, label, act) {
  const link = element("a", "picture");
  link.href = page.href;
  link.target = "_blank";
  link.rel = "noopener";
  link.title = page.id;
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    act();
  });
  if (page.image) {
    const image = element("img");
    image.src = page.image;
    image.alt = label;
    link.append(image);
  } else {
    link.append(element("span", "missing", say("picture.none", { reason: page.missing })));
  }
  return link;
}

function named(caption, page) {
  // Unknown writers are shown elsewhere: by the mark of a match, or the reason of a query.
  if (page.writer) caption.append(element("span", "writer label", say("writer", { name: page.writer })));
  const name = element("span", "name");
  // The end of a path distinguishes pages, so long paths are cut at the left.
  const box = page.box ? "#" + page.box : "";
  const text = element("bdi", "", page.id.slice(0, page.id.length - box.length));
  text.dir = "ltr";
  name.append(text);
  name.title = page.id;
  caption.append(name);
  if (box) caption.append(element("span", "part", say("part", { box: page.box.join(", ") })));
}

function querySheet(sheet) {
  const page = data.pages[sheet.q];
  const box = element("div", "query");
  const figure = element("figure");
  figure.append(picture(page, say("picture.query", { id: page.id }), () => compare(sheet, 0)));
  const caption = element("figcaption");
  named(caption, page);
  if ("ap" in sheet) {
    const values = { n: sheet.relevant, ap: (100 * sheet.ap).toFixed(1), first: sheet.first };
    caption.append(element("div", "note-ap label", say("sheet.ap", values)));
  } else if (sheet.why) caption.append(element("div", "note-ap label", sheet.why));
  const group = element("div", "ingroup");
  group.dataset.page = identity(page);
  caption.append(group);
  figure.append(caption);
  box.append(figure);
  return box;
}

const evidenceOf = (sheet) => data.evidence[sheet.q] || {};

// Buttons that show the decision on a pair wherever it is shown, and change it.
function decisionButtons(query, page) {
  const group = element("div", "decide");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", say("decision"));
  Object.keys(DECISIONS).forEach((choice) => {
    const node = button(choice, say("decide." + choice), () => decide(query, page, choice));
    node.tabIndex = -1;
    group.append(node);
  });
  group.refresh = () => {
    const choice = decisionOn(query, page)?.choice;
    [...group.children].forEach((node) => node.setAttribute("aria-pressed", node.classList.contains(choice)));
    const figure = group.closest("figure");
    if (!figure) return;
    figure.dataset.decision = choice || "";
    // Printed, the decision is a word.
    figure.querySelector("figcaption").dataset.word = choice ? say("decide." + choice) : "";
  };
  return group;
}

function showDecisions() {
  document.querySelectorAll(".decide").forEach((group) => group.refresh());
  document.querySelectorAll(".noted").forEach((node) => node.refresh());
  const groups = groupsOf();
  document.querySelectorAll(".ingroup").forEach((node) => {
    const at = groups.findIndex((group) => group.members.includes(node.dataset.page));
    node.textContent = at < 0 ? "" : groupTitle(groups[at], at);
  });
  showGroups(groups);
  const open = data.sheets.filter(isOpen).length;
  byId("left").textContent = say("left", { n: open, all: data.sheets.length });
}

// The nearest match that is another image: the one whose decision a sheet waits for.
const nearestOf = (sheet) => sheet.hits.find((hit) => !hit[4]);
function isOpen(sheet) {
  const nearest = nearestOf(sheet);
  return Boolean(nearest) && !decisionOn(data.pages[sheet.q], data.pages[nearest[0]]);
}

const groupTitle = (group, at) => group.name || say("group.number", { at: at + 1 });

function showGroups(groups) {
  const box = byId("groups");
  if (box.contains(document.activeElement) && document.activeElement.matches("input")) return;
  box.hidden = !groups.length;
  box.replaceChildren(element("h3", "", say("groups.title", { n: groups.length })));
  groups.forEach((group, at) => {
    const line = element("div", "hand");
    const name = element("input");
    name.value = group.name;
    name.placeholder = say("group.number", { at: at + 1 });
    name.setAttribute("aria-label", say("group.name"));
    name.addEventListener("change", () => {
      name.blur();
      nameGroup(group, name.value.trim());
    });
    name.addEventListener("keydown", (event) => { if (event.key === "Enter") name.blur(); });
    line.append(name, element("span", "soft", say("group.pages", { n: group.members.length })));
    const members = element("span", "members");
    group.members.forEach((member) => members.append(memberNode(group.pages[member])));
    line.append(members);
    if (group.rejected.length) {
      const pairs = group.rejected.map(({ query, page }) => `${query.id} – ${page.id}`).join("; ");
      line.append(element("span", "contradiction", say("group.rejected", { pairs })));
    }
    box.append(line);
  });
}

function memberNode(page) {
  const key = Object.keys(data.pages).find((k) => identity(data.pages[k]) === identity(page));
  const about = key && data.pages[key];
  const node = button("member", undefined, () => goTo(key));
  node.title = page.id;
  if (about?.image) {
    const image = element("img");
    image.src = about.image;
    image.alt = page.id;
    node.append(image);
  } else node.textContent = page.id.split("/").at(-1);
  return node;
}

function hit(sheet, at) {
  const [key, distance, mark, share, same] = sheet.hits[at];
  const rank = at + 1;
  const page = data.pages[key];
  const query = data.pages[sheet.q];
  const item = element("li");
  const figure = element("figure", someLabels ? mark : "plain");
  figure.tabIndex = 0;
  figure.dataset.key = key;
  figure.append(picture(page, say("picture.rank", { rank, id: page.id }), () => compare(sheet, at)));
  const caption = element("figcaption");
  const line = element("div", "line");
  const place = element("span", "mark");
  place.append(element("b", "", rank + "."));
  if (someLabels) place.append(" ", element("span", "label " + mark, say("mark." + mark)));
  line.append(place, element("span", "distance", distanceText(distance)));
  caption.append(line);
  if (same) caption.append(element("div", "same", say("same")));
  if (share !== null) {
    const percent = share >= 0.1 ? (100 * share).toFixed(0) : (100 * share).toPrecision(1);
    caption.append(element("div", "share", say("share", { percent })));
  }
  named(caption, page);
  const tools = element("div", "tools");
  tools.append(decisionButtons(query, page));
  const both = element("div", "looks");
  const look = button("both", say("compare"), () => compare(sheet, at));
  look.tabIndex = -1;
  both.append(look);
  if (evidenceOf(sheet)[key]) {
    const known = button("known", say("evidence"), () => compare(sheet, at, true));
    known.tabIndex = -1;
    both.append(known);
  }
  tools.append(both);
  caption.append(tools);
  const noted = element("div", "noted");
  noted.refresh = () => { noted.textContent = decisionOn(query, page)?.note || ""; };
  caption.append(noted);
  figure.append(caption);
  item.append(figure);
  return item;
}

// Where the list falls off: the match before the largest step of the distances, if this step is
// FALL times the next largest; else -1. Copies of the query do not count.
function fallOf(hits) {
  const steps = hits.slice(1).map((h, i) => ({ at: i, by: hits[i][4] ? -1 : h[1] - hits[i][1] }))
    .filter(({ by }) => by >= 0).sort((a, b) => b.by - a.by);
  return steps.length > 1 && steps[0].by > 0 && steps[0].by >= FALL * steps[1].by ? steps[0].at : -1;
}

// The distances of the matches, and that of the average page, on one line.
function ruler(sheet, fall) {
  const line = element("div", "ruler");
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", say("ruler"));
  const far = Math.max(sheet.average ?? 0, ...sheet.hits.map((h) => h[1])) * 1.04 || 1;
  const at = (d) => `${(100 * d / far).toFixed(2)}%`;
  if (sheet.average !== undefined) {
    const mark = element("span", "average");
    mark.style.left = at(sheet.average);
    mark.title = say("average.what");
    mark.append(element("span", "", say("average", { distance: distanceText(sheet.average) })));
    line.append(mark);
  }
  let labelled = -1;
  sheet.hits.forEach(([key, d, mark], i) => {
    const tick = button("tick " + (someLabels ? mark : "plain"), undefined, () => {
      line.parentNode.querySelectorAll(".hits figure")[i].focus();
    });
    tick.style.left = at(d);
    tick.tabIndex = -1;
    tick.title = `${i + 1}. ${data.pages[key].id}: ${distanceText(d)}`;
    tick.setAttribute("aria-label", tick.title);
    // Numbers that would overlap are left out.
    if (i === 0 || (d - labelled) / far > 0.03) {
      tick.append(element("span", "", i + 1));
      labelled = d;
    }
    if (fall >= 0 && i > fall) tick.classList.add("after");
    line.append(tick);
  });
  return line;
}

function sheetNode(sheet) {
  const section = element("section", "sheet");
  section.id = sheet.q;
  section.setAttribute("aria-label", say("picture.query", { id: data.pages[sheet.q].id }));
  section.append(querySheet(sheet));
  const answers = element("div", "answers");
  const list = element("ol", "hits");
  const fall = fallOf(sheet.hits);
  sheet.hits.forEach((h, i) => {
    const item = hit(sheet, i);
    if (fall >= 0 && i > fall) item.classList.add("after");
    list.append(item);
    if (i === fall) {
      const [a, b] = [h[1], sheet.hits[i + 1][1]].map(distanceText);
      list.append(element("li", "gap", say("gap", { a, b })));
    }
  });
  if (!sheet.hits.length) list.append(element("li", "soft", say("sheet.alone")));
  else answers.append(ruler(sheet, fall));
  answers.append(list);
  section.append(answers);
  return section;
}

const ORDERS = {
  given: () => 0,
  hard: (a, b) => (a.ap ?? 2) - (b.ap ?? 2),
  easy: (a, b) => (b.ap ?? -1) - (a.ap ?? -1),
  near: (a, b) => (nearestOf(a)?.[1] ?? 9) - (nearestOf(b)?.[1] ?? 9),
};
const FILTERS = {
  undecided: isOpen,
  accepted: (sheet) => sheet.hits.some(([key]) => decisionOn(data.pages[sheet.q], data.pages[key])?.choice === "accept"),
  evident: (sheet) => Boolean(data.evidence[sheet.q]),
  failed: (sheet) => sheet.hits[0]?.[2] === "wrong",
};
const someLabels = data.sheets.some((sheet) => sheet.hits.some((h) => h[2] !== "unknown"));
let shown = [];
let next = 0;

function more() {
  const fragment = document.createDocumentFragment();
  shown.slice(next, next + BATCH).forEach((sheet) => fragment.append(sheetNode(sheet)));
  byId("sheets").append(fragment);
  next = Math.min(next + BATCH, shown.length);
  byId("more").hidden = next >= shown.length;
  byId("count").textContent = say("count", { shown: next, n: shown.length });
  showDecisions();
}

function refresh() {
  const words = byId("find").value.trim().toLowerCase();
  const filters = Object.keys(FILTERS).filter((name) => byId(name).checked);
  shown = data.sheets.filter((sheet) => {
    const page = data.pages[sheet.q];
    if (words && !`${page.id} ${page.writer}`.toLowerCase().includes(words)) return false;
    return filters.every((name) => FILTERS[name](sheet));
  });
  shown.sort(ORDERS[byId("order").value]);
  next = 0;
  byId("sheets").replaceChildren();
  more();
}

// Shows the sheet with a name such as `p12`, at any position in the current order.
function goTo(name) {
  let index = shown.findIndex((sheet) => sheet.q === name);
  if (index < 0 && data.sheets.some((sheet) => sheet.q === name)) {
    byId("find").value = "";
    Object.keys(FILTERS).forEach((filter) => { byId(filter).checked = false; });
    refresh();
    index = shown.findIndex((sheet) => sheet.q === name);
  }
  if (index < 0) return false;
  while (next <= index) more();
  byId(name).scrollIntoView();
  byId(name).querySelector(".hits figure")?.focus({ preventScroll: true });
  return true;
}
