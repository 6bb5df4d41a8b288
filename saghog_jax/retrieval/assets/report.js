"use strict";
// Shows the sheets of the JSON above. Text from the manifest is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const BATCH = 20;
const MARKS = { right: "✓ same", wrong: "✗ other", unknown: "? unknown" };
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
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
  caption.append(element("span", "writer", page.writer ? "writer " + page.writer : "writer unknown"));
  const name = element("span", "name");
  // The end of a path tells pages apart: it is cut at the left, and isolated from that direction.
  const text = element("bdi", "", page.id);
  text.dir = "ltr";
  name.append(text);
  name.title = page.id;
  caption.append(name);
}

function querySheet(sheet) {
  const page = data.pages[sheet.q];
  const box = element("div", "query");
  const figure = element("figure");
  figure.append(picture(page, "query page " + page.id));
  const caption = element("figcaption");
  named(caption, page);
  const said = sheet.why || `AP ${(100 * sheet.ap).toFixed(1)} · ${sheet.partners} partner` +
    `${sheet.partners > 1 ? "s" : ""}, the nearest at rank ${sheet.first}`;
  caption.append(element("div", "said", said));
  figure.append(caption);
  box.append(figure);
  return box;
}

function hit([row, distance, mark], rank) {
  const page = data.pages[row];
  const item = element("li");
  const figure = element("figure", mark);
  figure.append(picture(page, `rank ${rank}: ${page.id}`));
  const caption = element("figcaption");
  const line = element("div", "line");
  line.append(element("span", "mark " + mark, `${rank}. ${MARKS[mark]}`));
  line.append(element("span", "distance", distance.toFixed(3)));
  caption.append(line);
  named(caption, page);
  figure.append(caption);
  item.append(figure);
  return item;
}

function sheetNode(sheet) {
  const section = element("section", "sheet");
  section.setAttribute("aria-label", "query " + data.pages[sheet.q].id);
  section.append(querySheet(sheet));
  const list = element("ol", "hits");
  sheet.hits.forEach((h, i) => list.append(hit(h, i + 1)));
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
    return !failed || sheet.hits[0]?.[2] === "wrong";
  });
  shown.sort(ORDERS[byId("order").value]);
  next = 0;
  byId("sheets").replaceChildren();
  more();
}

byId("order").addEventListener("change", refresh);
byId("find").addEventListener("input", refresh);
byId("failed").addEventListener("change", refresh);
byId("more").addEventListener("click", more);
refresh();
