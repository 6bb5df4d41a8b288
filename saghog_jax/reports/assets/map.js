// The map of the collection: a circle for each page; pointing at it fills the circles of its writer.
const mapSvg = document.querySelector("#mapbox svg");
if (mapSvg && data.points.length) {
  const hint = byId("maphint");
  const circles = data.points.map((point) => {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("cx", 10 + 400 * point.x);
    circle.setAttribute("cy", 10 + 240 * point.y);
    circle.setAttribute("r", data.points.length > 500 ? 2.5 : 4);
    circle.setAttribute("class", point.writer ? "dot" : "dot unlabelled");
    circle.addEventListener("pointerenter", () => show(point));
    circle.addEventListener("click", (event) => {
      // On a touch screen, the first touch shows the page and the second opens its sheet.
      if (event.pointerType === "touch" && tapped !== point) tapped = point;
      else open(point);
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
  const show = (point) => {
    here = data.points.indexOf(point);
    const page = data.pages["p" + point.row];
    data.points.forEach((other, i) => {
      const same = other === point || (point.writer && other.writer === point.writer);
      circles[i].classList.toggle("on", Boolean(same));
      circles[i].classList.toggle("here", other === point);
    });
    hint.replaceChildren();
    if (page?.image) {
      const image = element("img");
      image.src = page.image;
      image.alt = "";
      hint.append(image);
    }
    hint.append(element("div", "writer label", point.writer ? "writer " + point.writer : "writer unknown"));
    hint.append(element("div", "name", point.id));
    hint.hidden = false;
    const left = point.x < 0.5;
    hint.style.left = left ? `${8 + 96 * point.x}%` : "auto";
    hint.style.right = left ? "auto" : `${8 + 96 * (1 - point.x)}%`;
  };
  mapSvg.addEventListener("pointerleave", () => {
    hint.hidden = true;
    circles.forEach((circle) => circle.classList.remove("on", "here"));
  });
  // Arrow keys select the nearest page in their direction, Enter opens its sheet.
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  mapSvg.addEventListener("focus", () => show(data.points[Math.max(0, here)]));
  mapSvg.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && here >= 0) open(data.points[here]);
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    event.stopPropagation();
    const [dx, dy] = ARROWS[event.key];
    const from = data.points[Math.max(0, here)];
    let nearest = null;
    let least = Infinity;
    data.points.forEach((point) => {
      const along = (point.x - from.x) * dx + (point.y - from.y) * dy;
      const aside = Math.abs((point.x - from.x) * dy) + Math.abs((point.y - from.y) * dx);
      if (along > 1e-6 && along + 2 * aside < least) [nearest, least] = [point, along + 2 * aside];
    });
    if (nearest) show(nearest);
  });
  // The search box also marks pages on the map.
  byId("find").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase();
    data.points.forEach((point, i) => {
      const named = `${point.id} ${point.writer}`.toLowerCase().includes(words);
      circles[i].classList.toggle("on", Boolean(words) && named);
    });
  });
}
