// Two originals side by side, a pixel of one as large as a pixel of the other.
const panes = [...document.querySelectorAll("#compare .pane")];
let compared = [];

function compare(...pages) {
  compared = pages;
  byId("comparenote").textContent = "";
  panes.forEach((pane, i) => {
    const page = pages[i];
    pane.setAttribute("aria-label", page.id);
    const title = element("div", "name", (i ? "answer " : "query ") + page.id);
    const crop = element("div", "crop");
    const image = element("img");
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
    pane.replaceChildren(title, crop);
  });
  // Broad pages, such as lines of writing, have more room one above the other.
  const broad = pages.every((page) => page.size && page.size[0] > 1.4 * page.size[1]);
  byId("compare").classList.toggle("stacked", broad);
  byId("compare").showModal();
  const widest = Math.max(...pages.map((page) => (page.size || [1])[0]));
  byId("zoom").value = Math.max(-4, Math.min(1, Math.log2((panes[0].clientWidth - 24) / widest)));
  layOut();
}

function layOut() {
  const scale = 2 ** Number(byId("zoom").value);
  panes.forEach((pane, i) => {
    const page = compared[i];
    const crop = pane.querySelector(".crop");
    const image = pane.querySelector("img");
    if (!crop || !page.size) return;
    const [w, h] = page.size;
    crop.style.width = `${w * scale}px`;
    crop.style.height = `${h * scale}px`;
    const whole = page.small || !page.box;
    image.style.width = whole ? `${w * scale}px` : `${image.naturalWidth * scale}px`;
    image.style.left = whole ? "0" : `${-page.box[0] * scale}px`;
    image.style.top = whole ? "0" : `${-page.box[1] * scale}px`;
  });
}

byId("zoom").addEventListener("input", layOut);
byId("close").addEventListener("click", () => byId("compare").close());
