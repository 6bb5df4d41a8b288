// Connects the controls, and shows the first sheets.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || compareBox.open) return;
  if (event.target.matches('input:not([type="checkbox"]), select')) return;
  const figure = event.target.closest(".hits figure");
  const section = event.target.closest(".sheet");
  if (event.key === "/") byId("find").focus();
  else if (event.key === "z") undo();
  else if (event.key === "j" || event.key === "k") {
    const by = event.key === "j" ? 1 : -1;
    if (by > 0 && section && section === byId("sheets").lastChild) more();
    const to = step(".sheet", section, by);
    to?.scrollIntoView();
    to?.querySelector(".hits figure")?.focus({ preventScroll: true });
  } else if (figure && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    step(".hits figure", figure, event.key === "ArrowRight" ? 1 : -1).focus();
  } else if (figure && (event.key === "c" || event.key === "e")) {
    const sheet = data.sheets.find(({ q }) => q === section.id);
    const at = sheet.hits.findIndex(([key]) => key === figure.dataset.key);
    if (event.key === "c") compare(sheet, at);
    else compare(sheet, at, true);
  } else {
    const choice = Object.keys(DECISIONS).find((name) => DECISIONS[name] === event.key);
    if (!figure || !choice) return;
    figure.querySelector("." + choice).click();
  }
  event.preventDefault();
});

document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead th").forEach((th, column) => {
    const head = button("sort", th.textContent, () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const text = (row) => row.children[column].textContent;
      const rows = [...body.rows].sort((a, b) =>
        text(a).localeCompare(text(b), undefined, { numeric: true }) * (up ? 1 : -1));
      body.append(...rows);
    });
    th.replaceChildren(head);
  });
});

// Keys between two signs | of a text are shown as keys.
say("keys").split("|").forEach((text, i) => byId("keyhelp").append(i % 2 ? element("kbd", "", text) : text));

const occurring = new Set(data.sheets.flatMap((sheet) => sheet.hits.map((h) => h[2])));
if (someLabels) {
  MARKS.filter((mark) => occurring.has(mark)).forEach((mark) =>
    byId("marks").append(element("span", "mark label " + mark, say("mark." + mark)), " "));
}
const hideControl = (name, hide) => { byId(name).parentNode.hidden = hide; };
hideControl("evident", !Object.keys(data.evidence).length);
hideControl("failed", !someLabels);
hideControl("blind", !Object.values(data.pages).some(({ writer }) => writer));
if (!data.sheets.some((sheet) => "ap" in sheet)) {
  ["hard", "easy"].forEach((value) => byId("order").querySelector(`[value=${value}]`).remove());
}

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("order").addEventListener("change", refresh);
byId("find").addEventListener("input", refresh);
Object.keys(FILTERS).forEach((name) => byId(name).addEventListener("change", refresh));
byId("blind").addEventListener("change", (event) =>
  document.body.classList.toggle("blind", event.target.checked));
byId("more").addEventListener("click", more);
byId("undo").addEventListener("click", undo);
byId("export").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([withMark(decisionsCsv())], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
byId("load").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) loadDecisions(decode(new Uint8Array(await file.arrayBuffer())));
  event.target.value = "";
});
document.addEventListener("decided", showDecisions);
addEventListener("hashchange", () => goTo(location.hash.slice(1)));
addEventListener("beforeprint", () => { while (next < shown.length) more(); });
// If most pages are wide, such as lines of writing, their pictures need less height.
const sizes = Object.values(data.pages).filter((page) => page.size).map((page) => page.size);
const mostWide = sizes.filter(([w, h]) => w > 1.6 * h).length > sizes.length / 2;
document.body.classList.toggle("wide", mostWide);
refresh();
showDecided();
if (location.hash) setTimeout(() => goTo(location.hash.slice(1)), 0);
