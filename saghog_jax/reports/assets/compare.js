// Two originals side by side, a pixel of one as large as a pixel of the other; where the report
// has evidence for the match, its ink is coloured by it and like patches are shown as pairs.
const panes = [...document.querySelectorAll("#compare .pane")];
let compared = [];
let proof = null;

function compare(query, page, evidence) {
  compared = [query, page];
  proof = evidence || null;
  byId("comparenote").textContent = "";
  panes.forEach(fillPane);
  byId("comparesaid").hidden = byId("pairs").hidden = !proof;
  byId("noevidence").hidden = Boolean(proof);
  document.querySelectorAll("#compare .of-evidence").forEach((node) => { node.hidden = !proof; });
  showPairs();
  // Broad pages, such as lines of writing, have more room one above the other.
  const allBroad = compared.every((page) => page.size && page.size[0] > 1.4 * page.size[1]);
  byId("compare").classList.toggle("stacked", allBroad);
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
  // What the browser cannot open (TIFF, or moved away) is shown as its thumbnail, as large.
  image.addEventListener("error", () => {
    if (!page.image || page.small) return;
    page.small = true;
    byId("comparenote").textContent = "an original cannot be shown here; its thumbnail stands in";
    image.src = page.image;
  });
  image.addEventListener("load", layOut);
  image.src = page.small ? page.image : page.href;
  crop.append(image);
  if (proof) {
    const [brightness, contrast] = proof.levels[i];
    image.style.setProperty(
      "--levels", `grayscale(1) brightness(${brightness}) contrast(${contrast})`);
    const heat = element("img", "heat");
    heat.alt = "";
    heat.src = proof.heat[i];
    crop.append(heat);
    proof.pairs.forEach((pair, at) => {
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
  if (!proof) return;
  const [near, mean] = [1 - proof.similarity, 1 - proof.means[0]].map((d) => d.toFixed(3));
  byId("comparesaid").querySelector(".numbers").textContent =
    `Distance of these two: ${near}; of the query and an average page here: ${mean}.`;
  proof.pairs.forEach(([cosine, ...patches], at) => {
    const button = element("button", "pair");
    button.type = "button";
    button.setAttribute("aria-label", `pair ${at + 1}, cosine ${cosine.toFixed(2)}`);
    patches.forEach(([, , source]) => {
      const patch = element("span", "patch");
      const image = element("img");
      image.alt = "";
      image.src = source;
      patch.append(image, element("span", "frame"));
      button.append(patch);
    });
    const caption = element("span", "caption");
    caption.append(element("b", "", at + 1), ` cosine ${cosine.toFixed(2)}`);
    button.append(caption);
    button.addEventListener("click", () => choosePair(at));
    const item = element("li");
    item.append(button);
    byId("pairs").append(item);
  });
  if (!proof.pairs.length) byId("pairs").append(element("li", "soft", "no patches of the two are each other's most similar"));
}

// Brings the two places of a pair into view, large enough to be judged.
function choosePair(at) {
  byId("zoom").value = Math.max(Number(byId("zoom").value), Math.log2(48 / Math.min(...proof.sides)));
  layOut();
  const scale = 2 ** Number(byId("zoom").value);
  panes.forEach((pane, i) => {
    const [x, y] = proof.pairs[at][1 + i];
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
    const side = proof ? proof.sides[i] * scale : 0;
    crop.querySelectorAll(".place").forEach((node, at) => {
      const [x, y] = proof.pairs[at][1 + i];
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
