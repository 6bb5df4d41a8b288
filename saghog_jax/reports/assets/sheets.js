"use strict";
// Shows the sheets of the JSON data. Text from the manifest is inserted as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const BATCH = 20;
const MARKS = { right: "✓ same", wrong: "✗ other", unknown: "? unknown" };
const DECISIONS = { accept: "a", reject: "r", unsure: "u" };
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// A page is known by the digest of its image and box, else by its name. So decisions survive another
// order, another run, and other names of the files.
const STORE = "decisions:" + location.pathname;
const decisions = new Map(); // pairName -> {query, page, choice}
const pairName = (query, page) => JSON.stringify([query.digest || query.id, page.digest || page.id]);
// The pages of this file that can be queries ("p", "q") and matches ("p", "g").
const pagesBut = (key) => Object.entries(data.pages).filter(([k]) => k[0] !== key).map(([, page]) => page);
const pagesOf = { query: pagesBut("g"), page: pagesBut("q") };

// The pages of this file that a decision speaks of: copies of a page are several.
function here(role, { id, digest }) {
  const digests = digest && pagesOf[role].some((page) => page.digest);
  return pagesOf[role].filter((page) => (digests ? page.digest === digest : page.id === id));
}

function remember(query, page, choice) {
  // Older files and older reports name pages only.
  const of = (role, { id, digest = "" }) => ({ id, digest: (here(role, { id, digest })[0] || { digest }).digest });
  const pair = { query: of("query", query), page: of("page", page), choice };
  decisions.set(pairName(pair.query, pair.page), pair);
  return pair;
}

try {
  JSON.parse(localStorage.getItem(STORE) || "[]").forEach(([first, ...more]) => {
    if (more.length > 1) return remember({ id: first, digest: more[2] }, { id: more[0], digest: more[3] }, more[1]);
    const [query, page] = JSON.parse(first);
    return remember({ id: query }, { id: page }, more[0]);
  });
} catch { /* without storage, decisions last until the file is closed */ }

function decide(query, page, choice) {
  const pair = pairName(query, page);
  if (decisions.get(pair)?.choice === choice) decisions.delete(pair);
  else remember(query, page, choice);
  showDecided();
}

function showDecided() {
  byId("decided").textContent = decisions.size;
  const saved = [...decisions.values()].map(({ query, page, choice }) =>
    [query.id, page.id, choice, query.digest, page.digest]);
  try {
    localStorage.setItem(STORE, JSON.stringify(saved));
  } catch { /* decisions last until the file is closed */ }
}

const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;

function decisionsCsv() {
  const distance = new Map();
  data.sheets.forEach((sheet) => sheet.hits.forEach(([key, d], i) => {
    distance.set(pairName(data.pages[sheet.q], data.pages[key]), [i + 1, d]);
  }));
  const nameNow = (role, page) => {
    const same = here(role, page);
    return same.some(({ id }) => id === page.id) || !same.length ? page.id : same[0].id;
  };
  const digests = [...decisions.values()].some(({ query, page }) => query.digest || page.digest);
  const lines = [...decisions].map(([name, { query, page, choice }]) => {
    const [rank, d] = distance.get(name) || ["", ""];
    const line = [quoted(nameNow("query", query)), quoted(nameNow("page", page)), rank, d, choice];
    return [...line, ...(digests ? [query.digest, page.digest] : [])].join(",");
  });
  const head = "query,page,rank,distance,decision" + (digests ? ",query_digest,page_digest" : "");
  return [head, ...lines].join("\n") + "\n";
}

// Spreadsheets may separate cells by semicolons or tabs, and say so in a first line `sep=;`.
function separatorOf(text) {
  const said = /^\uFEFF?"?sep=(.)"?[,;\t]*\r?\n/i.exec(text);
  if (said) return [said[1], text.slice(said[0].length)];
  const table = text.replace(/^\uFEFF/, "");
  const count = (separator) => table.split(/\r?\n/, 1)[0].split(separator).length;
  return [[",", ";", "\t"].reduce((a, b) => (count(b) > count(a) ? b : a)), table];
}

function readCsv(text) {
  const [separator, table] = separatorOf(text);
  const mark = `\\u${separator.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const cell = new RegExp(`(?:"((?:[^"]|"")*)"|([^"${mark}\\n\\r]*))(${mark}|\\r?\\n|$)`, "g");
  const rows = [[]];
  for (const [, inQuotes, plain, end] of table.matchAll(cell)) {
    rows.at(-1).push(inQuotes === undefined ? plain : inQuotes.replaceAll('""', '"'));
    if (end === "") break;
    if (end !== separator) rows.push([]);
  }
  return rows;
}

function loadDecisions(text) {
  const [head, ...rows] = readCsv(text);
  const names = head.map((name) => name.trim().toLowerCase());
  const at = ["query", "page", "decision"].map((name) => names.indexOf(name));
  if (at.includes(-1)) {
    byId("count").textContent = "not a decisions.csv: it needs the columns query, page and decision";
    return;
  }
  const digestAt = ["query_digest", "page_digest"].map((name) => names.indexOf(name));
  const notHere = new Set();
  const copies = new Set();
  rows.forEach((row) => {
    const [query, page, said] = at.map((i) => row[i]);
    const [queryDigest, pageDigest] = digestAt.map((i) => (row[i] || "").trim().toLowerCase());
    const choice = (said || "").trim().toLowerCase();
    if (!(choice in DECISIONS)) return;
    const pair = remember({ id: query, digest: queryDigest }, { id: page, digest: pageDigest }, choice);
    ["query", "page"].forEach((role) => {
      const same = here(role, pair[role]);
      if (!same.length) notHere.add(pair[role].id);
      if (same.length > 1) copies.add(same.map(({ id }) => id).join(", "));
    });
  });
  showDecided();
  refresh();
  const some = (list) => [...list].slice(0, 3).join("; ") + (list.size > 3 ? "; ..." : "");
  const notes = [];
  if (notHere.size) notes.push(`decisions of ${notHere.size} pages that are not in this file: ${some(notHere)}`);
  if (copies.size) notes.push(`decisions count for each copy of a page: ${some(copies)}`);
  if (notes.length) byId("count").textContent = notes.join(". ");
}

function picture(page, label) {
  const link = element("a", "picture");
  link.href = page.href;
  link.target = "_blank";
  link.rel = "noopener";
  link.title = page.id;
  if (page.image) {
    const image = element("img");
    image.src = page.image;
    image.alt = label;
    link.append(image);
  } else {
    link.append(element("span", "missing", "no picture: " + page.missing));
  }
  return link;
}

function named(caption, page) {
  // Unknown writers are shown elsewhere: by the mark of a match, or the reason of a query.
  if (page.writer) caption.append(element("span", "writer label", "writer " + page.writer));
  const name = element("span", "name");
  // The end of a path distinguishes pages, so long paths are cut at the left.
  const box = page.box ? "#" + page.box : "";
  const text = element("bdi", "", page.id.slice(0, page.id.length - box.length));
  text.dir = "ltr";
  name.append(text);
  name.title = page.id;
  caption.append(name);
  if (box) caption.append(element("span", "part", "part " + page.box.join(", ")));
}

function querySheet(sheet) {
  const page = data.pages[sheet.q];
  const box = element("div", "query");
  const figure = element("figure");
  figure.append(picture(page, "query page " + page.id));
  const caption = element("figcaption");
  named(caption, page);
  if ("ap" in sheet) {
    const pages = sheet.relevant > 1 ? `${sheet.relevant} relevant pages` : "1 relevant page";
    const note = `AP ${(100 * sheet.ap).toFixed(1)} · ${pages}, the first at rank ${sheet.first}`;
    caption.append(element("div", "note-ap label", note));
  } else if (sheet.why) caption.append(element("div", "note-ap label", sheet.why));
  figure.append(caption);
  box.append(figure);
  return box;
}

const evidenceOf = (sheet) => data.evidence[sheet.q] || {};

function decisionButtons(query, page) {
  const group = element("div", "decide");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "decision");
  Object.keys(DECISIONS).forEach((choice) => {
    const button = element("button", choice, choice);
    button.type = "button";
    button.tabIndex = -1;
    button.addEventListener("click", () => {
      decide(query, page, choice);
      group.refresh();
    });
    group.append(button);
  });
  group.refresh = () => [...group.children].forEach((button) => {
    const on = decisions.get(pairName(query, page))?.choice === button.textContent;
    button.setAttribute("aria-pressed", on);
  });
  group.refresh();
  return group;
}

function hit(sheet, [key, distance, mark, share, same], rank) {
  const page = data.pages[key];
  const query = data.pages[sheet.q];
  const item = element("li");
  const figure = element("figure", mark);
  figure.tabIndex = 0;
  figure.append(picture(page, `rank ${rank}: ${page.id}`));
  const caption = element("figcaption");
  const line = element("div", "line");
  const place = element("span", "mark");
  place.append(element("b", "", rank + ". "), element("span", "label " + mark, MARKS[mark]));
  line.append(place, element("span", "distance", distance.toFixed(distance < 0.1 ? 4 : 3)));
  caption.append(line);
  if (same) caption.append(element("div", "same", "the same image (a copy)"));
  if (share !== null) {
    const percent = share >= 0.1 ? (100 * share).toFixed(0) : (100 * share).toPrecision(1);
    caption.append(element("div", "share", `one writer in ${percent} % of such pairs`));
  }
  named(caption, page);
  const tools = element("div", "tools");
  tools.append(decisionButtons(query, page));
  const evidence = evidenceOf(sheet)[key];
  const both = element("button", evidence ? "both known" : "both", evidence ? "evidence" : "compare");
  both.type = "button";
  both.tabIndex = -1;
  both.addEventListener("click", () => compare(query, page, evidence));
  tools.append(both);
  caption.append(tools);
  figure.append(caption);
  item.append(figure);
  return item;
}

function sheetNode(sheet) {
  const section = element("section", "sheet");
  section.id = sheet.q;
  section.setAttribute("aria-label", "query " + data.pages[sheet.q].id);
  section.append(querySheet(sheet));
  const list = element("ol", "hits");
  sheet.hits.forEach((h, i) => list.append(hit(sheet, h, i + 1)));
  if (!sheet.hits.length) list.append(element("li", "soft", "no other page to compare with"));
  section.append(list);
  return section;
}

const ORDERS = {
  given: () => 0,
  hard: (a, b) => (a.ap ?? 2) - (b.ap ?? 2),
  easy: (a, b) => (b.ap ?? -1) - (a.ap ?? -1),
  near: (a, b) => (a.hits[0]?.[1] ?? 9) - (b.hits[0]?.[1] ?? 9),
};
let shown = [];
let next = 0;

function more() {
  const fragment = document.createDocumentFragment();
  shown.slice(next, next + BATCH).forEach((sheet) => fragment.append(sheetNode(sheet)));
  byId("sheets").append(fragment);
  next = Math.min(next + BATCH, shown.length);
  byId("more").hidden = next >= shown.length;
  byId("count").textContent = `${next} of ${shown.length} sheets`;
}

function refresh() {
  const words = byId("find").value.trim().toLowerCase();
  const failed = byId("failed").checked;
  shown = data.sheets.filter((sheet) => {
    const page = data.pages[sheet.q];
    if (words && !`${page.id} ${page.writer}`.toLowerCase().includes(words)) return false;
    if (byId("evident").checked && !data.evidence[sheet.q]) return false;
    return !failed || sheet.hits[0]?.[2] === "wrong";
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
    byId("failed").checked = byId("evident").checked = false;
    refresh();
    index = shown.findIndex((sheet) => sheet.q === name);
  }
  if (index < 0) return false;
  while (next <= index) more();
  byId(name).scrollIntoView();
  byId(name).querySelector(".hits figure")?.focus({ preventScroll: true });
  return true;
}

function step(selector, from, by) {
  const all = [...document.querySelectorAll(selector)];
  const at = all.indexOf(from);
  return all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + by))];
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("compare").open) return;
  if (event.target.matches("input, select")) return;
  const figure = event.target.closest(".hits figure");
  const section = event.target.closest(".sheet");
  if (event.key === "/") byId("find").focus();
  else if (event.key === "j" || event.key === "k") {
    const by = event.key === "j" ? 1 : -1;
    if (by > 0 && section && section === byId("sheets").lastChild) more();
    const to = step(".sheet", section, by);
    to?.scrollIntoView();
    to?.querySelector(".hits figure")?.focus({ preventScroll: true });
  } else if (figure && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    step(".hits figure", figure, event.key === "ArrowRight" ? 1 : -1).focus();
  } else if (figure && event.key === "c") figure.querySelector(".both").click();
  else {
    const choice = Object.keys(DECISIONS).find((name) => DECISIONS[name] === event.key);
    if (!figure || !choice) return;
    figure.querySelector("." + choice).click();
  }
  event.preventDefault();
});

document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = element("button", "sort", th.textContent);
    button.type = "button";
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const text = (row) => row.children[column].textContent;
      const rows = [...body.rows].sort((a, b) =>
        text(a).localeCompare(text(b), undefined, { numeric: true }) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
});

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("order").addEventListener("change", refresh);
byId("find").addEventListener("input", refresh);
["failed", "evident"].forEach((name) => byId(name).addEventListener("change", refresh));
byId("evident").parentNode.hidden = !Object.keys(data.evidence).length;
byId("blind").addEventListener("change", (event) =>
  document.body.classList.toggle("blind", event.target.checked));
byId("more").addEventListener("click", more);
byId("export").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([decisionsCsv()], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
byId("load").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) loadDecisions(await file.text());
  event.target.value = "";
});
addEventListener("hashchange", () => goTo(location.hash.slice(1)));
if (!data.sheets.some((sheet) => "ap" in sheet)) {
  ["hard", "easy"].forEach((value) => byId("order").querySelector(`[value=${value}]`).remove());
  byId("failed").parentNode.hidden = !data.sheets.some((s) => s.hits.some((h) => h[2] !== "unknown"));
}
// If most pages are wide, such as lines of writing, their pictures need less height.
const sizes = Object.values(data.pages).filter((page) => page.size).map((page) => page.size);
const mostWide = sizes.filter(([w, h]) => w > 1.6 * h).length > sizes.length / 2;
document.body.classList.toggle("wide", mostWide);
showDecided();
refresh();
if (location.hash) setTimeout(() => goTo(location.hash.slice(1)), 0);
