// The map of the collection: a circle for each page. Mouse, finger and keys choose a page; so does the
// list of sheets. The other pages of its writer are filled, or its matches where no writer is known.
const mapSvg = document.querySelector("#mapbox svg");
if (mapSvg && data.points.length) {
  const hint = byId("maphint");
  // A finger that meets no circle chooses the nearest one within so many pixels.
  const REACH = 26;
  const named = new Map(data.points.map((point, i) => ["p" + point.row, i]));
  const matches = new Map(data.sheets.map((sheet) => [sheet.q, sheet.hits.map(([key]) => key)]));
  const circles = data.points.map((point) => {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("cx", 10 + 400 * point.x);
    circle.setAttribute("cy", 10 + 240 * point.y);
    circle.setAttribute("r", data.points.length > 500 ? 2.5 : 4);
    circle.setAttribute("class", point.writer ? "dot" : "dot unlabelled");
    circle.addEventListener("pointerenter", () => show(point));
    circle.addEventListener("click", (event) => {
      event.stopPropagation();
      choose(point, event);
    });
    mapSvg.append(circle);
    return circle;
  });
  let tapped = null;
  let here = -1;
  const open = (point) => {
    const name = "p" + point.row;
    if (!goTo(name) && point.file) location.href = point.file + "#" + name;
  };
  const choose = (point, event) => {
    // On a touch screen, the first touch shows the page and the second opens its sheet.
    if (event.pointerType === "touch" && tapped !== point) {
      tapped = point;
      show(point);
    } else open(point);
  };
  const mark = (point, others = null) => {
    here = data.points.indexOf(point);
    const name = "p" + point.row;
    const near = others || (point.writer && !document.body.classList.contains("blind")
      ? data.points.filter((other) => other.writer === point.writer).map((other) => "p" + other.row)
      : matches.get(name) || []);
    circles.forEach((circle) => circle.classList.remove("on", "here"));
    [...near, name].forEach((key) => circles[named.get(key)]?.classList.add("on"));
    circles[here].classList.add("here");
  };
  const show = (point) => {
    mark(point);
    const page = data.pages["p" + point.row];
    hint.replaceChildren();
    if (page?.image) {
      const image = element("img");
      image.src = page.image;
      image.alt = "";
      hint.append(image);
    }
    if (point.writer) hint.append(element("div", "writer label", say("writer", { name: point.writer })));
    else if (data.points.some(({ writer }) => writer)) hint.append(element("div", "writer label", say("unknown.writer")));
    hint.append(element("div", "name", point.id));
    hint.hidden = false;
    const left = point.x < 0.5;
    hint.style.left = left ? `${8 + 96 * point.x}%` : "auto";
    hint.style.right = left ? "auto" : `${8 + 96 * (1 - point.x)}%`;
  };
  // The nearest circle to a place on the screen, within reach.
  const nearest = (event) => {
    let best = null;
    let least = REACH;
    circles.forEach((circle, i) => {
      const box = circle.getBoundingClientRect();
      const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [best, least] = [data.points[i], away];
    });
    return best;
  };
  mapSvg.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) choose(point, event);
  });
  mapSvg.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "touch") return;
    hint.hidden = true;
  });
  // Arrow keys select the nearest page in their direction, Enter opens its sheet.
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  mapSvg.addEventListener("focus", () => { if (mapSvg.matches(":focus-visible")) show(data.points[Math.max(0, here)]); });
  mapSvg.addEventListener("blur", () => { hint.hidden = true; });
  mapSvg.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && here >= 0) open(data.points[here]);
    if (event.key === "Escape") hint.hidden = true;
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    event.stopPropagation();
    const [dx, dy] = ARROWS[event.key];
    const from = data.points[Math.max(0, here)];
    let nearestOne = null;
    let least = Infinity;
    data.points.forEach((point) => {
      const along = (point.x - from.x) * dx + (point.y - from.y) * dy;
      const aside = Math.abs((point.x - from.x) * dy) + Math.abs((point.y - from.y) * dx);
      if (along > 1e-6 && along + 2 * aside < least) [nearestOne, least] = [point, along + 2 * aside];
    });
    if (nearestOne) show(nearestOne);
  });
  // What is selected in the list: the query, and its match or all of its matches.
  document.addEventListener("focusin", (event) => {
    const section = event.target.closest(".sheet");
    const point = section && data.points[named.get(section.id)];
    if (!point) return;
    const key = event.target.closest(".hits figure")?.dataset.key;
    mark(point, key ? [key] : matches.get(section.id));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "m" || compareBox.open || event.target.matches("input, select")) return;
    byId("map").scrollIntoView({ block: "center" });
    mapSvg.focus();
    show(data.points[Math.max(0, here)]);
  });
  // The search box also marks pages on the map.
  byId("find").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase();
    circles.forEach((circle, i) => {
      const text = `${data.points[i].id} ${data.points[i].writer}`.toLowerCase();
      circle.classList.remove("here");
      circle.classList.toggle("on", Boolean(words) && text.includes(words));
    });
  });
}
