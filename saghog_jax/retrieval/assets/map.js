// The map of the collection: one circle a page; pointing at one fills those of its writer.
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
    circle.addEventListener("click", () => {
      const name = "p" + point.row;
      if (!goTo(name) && point.file) location.href = point.file + "#" + name;
    });
    mapSvg.append(circle);
    return circle;
  });
  const show = (point) => {
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
  // What is typed into the search box shows on the map as well.
  byId("find").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase();
    data.points.forEach((point, i) => {
      const named = `${point.id} ${point.writer}`.toLowerCase().includes(words);
      circles[i].classList.toggle("on", Boolean(words) && named);
    });
  });
}
