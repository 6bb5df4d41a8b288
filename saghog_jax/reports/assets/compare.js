// Shows two originals side by side at one scale. If the report has evidence for the match, it
// colours the ink and shows pairs of similar patches.
const panes = [...document.querySelectorAll("#compare .pane")];
let compared = [];
let shownEvidence = null;

function compare(query, page, evidence) {
  compared = [query, page];
  shownEvidence = evidence || null;
  byId("comparenote").textContent = "";
  panes.forEach(fillPane);
  byId("explanation").hidden = byId("pairs").hidden = !shownEvidence;
  byId("noevidence").hidden = Boolean(shownEvidence);
  document.querySelectorAll("#compare .of-evidence").forEach((node) => { node.hidden = !shownEvidence; });
  showPairs();
  // Wide pages, such as lines of writing, have more room one above the other.
  const allWide = compared.every((page) => page.size && page.size[0] > 1.4 * page.size[1]);
  byId("compare").classList.toggle("stacked", allWide);
  byId("compare").showModal();
  const widest = Math.max(...compared.map((page) => (page.size || [1])[0]));
  byId("zoom").value = Math.max(-4, Math.min(1, Math.log2((panes[0].clientWidth - 24) / widest)));
  layOut();
}

function fillPane(pane, i) {
  const page = compared[i];
  pane.setAttribute("aria-label", (i ? "answer " : "query ") + page.id);
  const crop = element("div", "crop");
  const image = element("img", "original");
  image.alt = page.id;
  // Images that the browser cannot open (TIFF, or moved) are replaced by their thumbnails.
  image.addEventListener("error", () => {
    if (!page.image || page.small) return;
    page.small = true;
    byId("comparenote").textContent = "an original cannot be shown; its thumbnail replaces it";
    image.src = page.image;
  });
  image.addEventListener("load", layOut);
  image.src = page.small ? page.image : page.href;
  crop.append(image);
  if (shownEvidence) {
    const [brightness, contrast] = shownEvidence.levels[i];
    image.style.setProperty(
      "--levels", `grayscale(1) brightness(${brightness}) contrast(${contrast})`);
    const heat = element("img", "heat");
    heat.alt = "";
    heat.src = shownEvidence.heat[i];
    crop.append(heat);
    shownEvidence.pairs.forEach((pair, at) => {
      const place = element("div", "place");
      place.append(element("span", "", at + 1));
      place.addEventListener("click", () => choosePair(at));
      crop.append(place);
    });
  }
  pane.replaceChildren(element("div", "name", (i ? "answer " : "query ") + page.id), crop);
}

function showPairs() {
  byId("pairs").replaceChildren();
  if (!shownEvidence) return;
  const [near, mean] = [1 - shownEvidence.similarity, 1 - shownEvidence.means[0]].map((d) => d.toFixed(3));
  byId("explanation").querySelector(".numbers").textContent =
    `Distance of these two: ${near}; of the query and an average page here: ${mean}.`;
  shownEvidence.pairs.forEach(([alike, ...patches], at) => {
    const button = element("button", "pair");
    button.type = "button";
    button.setAttribute("aria-label", `pair ${at + 1}, alike: ${alike.toFixed(2)} of 1`);
    patches.forEach(([, , source]) => {
      const patch = element("span", "patch");
      const image = element("img");
      image.alt = "";
      image.src = source;
      patch.append(image, element("span", "frame"));
      button.append(patch);
    });
    const caption = element("span", "caption");
    caption.append(element("b", "", at + 1), ` alike: ${alike.toFixed(2)} of 1`);
    button.append(caption);
    button.addEventListener("click", () => choosePair(at));
    const item = element("li");
    item.append(button);
    byId("pairs").append(item);
  });
  if (!shownEvidence.pairs.length) byId("pairs").append(element("li", "soft", "no patch of one page is the mutual nearest neighbour of a patch of the other"));
}

// Scrolls to both places of a pair, and enlarges them if necessary.
function choosePair(at) {
  byId("zoom").value = Math.max(Number(byId("zoom").value), Math.log2(48 / Math.min(...shownEvidence.sides)));
  layOut();
  const scale = 2 ** Number(byId("zoom").value);
  panes.forEach((pane, i) => {
    const [x, y] = shownEvidence.pairs[at][1 + i];
    const top = pane.querySelector(".name").offsetHeight;
    pane.scrollTo(x * scale - pane.clientWidth / 2, y * scale + top - pane.clientHeight / 2);
    pane.querySelectorAll(".place").forEach((node, j) => node.classList.toggle("on", j === at));
  });
  byId("pairs").querySelectorAll(".pair").forEach((node, j) => {
    node.setAttribute("aria-pressed", j === at);
  });
}

function layOut() {
  const scale = 2 ** Number(byId("zoom").value);
  panes.forEach((pane, i) => {
    const page = compared[i];
    const crop = pane.querySelector(".crop");
    const image = pane.querySelector(".original");
    if (!crop || !page.size) return;
    const [w, h] = page.size;
    crop.style.width = `${w * scale}px`;
    crop.style.height = `${h * scale}px`;
    const whole = page.small || !page.box;
    image.style.width = whole ? `${w * scale}px` : `${image.naturalWidth * scale}px`;
    image.style.left = whole ? "0" : `${-page.box[0] * scale}px`;
    image.style.top = whole ? "0" : `${-page.box[1] * scale}px`;
    const side = shownEvidence ? shownEvidence.sides[i] * scale : 0;
    crop.querySelectorAll(".place").forEach((node, at) => {
      const [x, y] = shownEvidence.pairs[at][1 + i];
      node.style.width = node.style.height = `${side}px`;
      node.style.left = `${x * scale - side / 2}px`;
      node.style.top = `${y * scale - side / 2}px`;
    });
  });
}

byId("zoom").addEventListener("input", layOut);
byId("close").addEventListener("click", () => byId("compare").close());
["heat", "places"].forEach((name) => byId(name).addEventListener("change", (event) =>
  byId("compare").classList.toggle("no-" + name, !event.target.checked)));
byId("pairs").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  step("#pairs .pair", event.target, by)?.focus();
  event.preventDefault();
});
