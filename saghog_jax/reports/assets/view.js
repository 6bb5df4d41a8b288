// A page in a pane: moved by dragging, zoomed by wheel and pinch, turned; alone or with the other.
//
// A view shows the point (x, y) of its page, in pixels of the page, at the centre of its area, at
// `scale` pixels of the screen a pixel of the page, turned clockwise by `turn` degrees.
const LEAST = 1 / 64;
const MOST = 16;
const WHEEL = 0.0016;
// A picture is replaced by the original where it would be enlarged by more than this.
const ENLARGED = 1.15;
const views = ["query", "match"].map(makeView);
const moved = () => document.dispatchEvent(new Event("moved"));

function makeView(role, i) {
  const pane = element("div", "pane");
  const top = element("div", "pane-top");
  const name = element("span", "name");
  const turn = button("turn", "⟳", () => turnView(view));
  turn.title = say("turn.key");
  turn.setAttribute("aria-label", say("turn"));
  const original = element("a", "soft", say("original"));
  original.target = "_blank";
  original.rel = "noopener";
  top.append(element("b", "", say("pane." + role)), name, original, turn);
  const area = element("div", "area");
  area.tabIndex = 0;
  const crop = element("div", "crop");
  const image = element("img", "original");
  image.draggable = false;
  area.append(crop);
  // Beside the page: the numbers of pairs, which would cover the writing on it.
  const body = element("div", "body");
  const gutter = element("div", "gutter");
  gutter.hidden = true;
  body.append(gutter, area);
  pane.append(top, body);
  document.querySelector("#compare .panes").append(pane);
  const view = { i, pane, name, original, area, gutter, crop, image, page: null, x: 0, y: 0, scale: 1, turn: 0, touches: new Map() };
  area.addEventListener("pointerdown", (event) => grasp(view, event));
  area.addEventListener("pointermove", (event) => drag(view, event));
  ["pointerup", "pointercancel"].forEach((name) => area.addEventListener(name, (event) => {
    view.touches.delete(event.pointerId);
    area.classList.remove("held");
  }));
  area.addEventListener("wheel", (event) => {
    event.preventDefault();
    // Some browsers count lines or pages.
    const by = event.deltaY * [1, 33, 400][event.deltaMode];
    zoomAt(view, Math.exp(-clamp(by, -400, 400) * WHEEL), ...offset(view, event));
  }, { passive: false });
  area.addEventListener("dblclick", (event) => zoomAt(view, event.shiftKey ? 0.5 : 2, ...offset(view, event)));
  return view;
}

const middle = (view) => [view.area.clientWidth / 2, view.area.clientHeight / 2];
function offset(view, event) {
  const box = view.area.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// A vector turned clockwise.
function turned(x, y, degrees) {
  const [cos, sin] = { 0: [1, 0], 90: [0, 1], 180: [-1, 0], 270: [0, -1] }[((degrees % 360) + 360) % 360];
  return [x * cos - y * sin, x * sin + y * cos];
}

function onScreen(view, x, y) {
  const [dx, dy] = turned(x - view.x, y - view.y, view.turn);
  const [cx, cy] = middle(view);
  return [cx + dx * view.scale, cy + dy * view.scale];
}

const bothOr = (view) => (byId("together").checked ? views : [view]);

function moveBy(view, dx, dy) {
  bothOr(view).forEach((one) => {
    const [x, y] = turned(dx, dy, -one.turn);
    one.whole = false;
    one.x = clamp(one.x - x / one.scale, 0, one.page.size?.[0] ?? 1);
    one.y = clamp(one.y - y / one.scale, 0, one.page.size?.[1] ?? 1);
    draw(one);
  });
  moved();
}

// Zooms so that the point of the page at (px, py) of the area stays where it is.
function zoomAt(view, factor, px = middle(view)[0], py = middle(view)[1]) {
  const all = bothOr(view);
  // Both keep their proportion.
  const allowed = all.reduce((f, one) => clamp(f * one.scale, LEAST, MOST) / one.scale, factor);
  all.forEach((one) => {
    const [cx, cy] = middle(one);
    const [x, y] = turned(px - cx, py - cy, -one.turn);
    one.x += (x / one.scale) * (1 - 1 / allowed);
    one.y += (y / one.scale) * (1 - 1 / allowed);
    one.scale *= allowed;
    one.whole = false;
    draw(one);
  });
  moved();
}

function setScale(view, scale) {
  bothOr(view).forEach((one) => { Object.assign(one, { scale, whole: false }); draw(one); });
  moved();
}

// Whole pages; both at one scale where they move together.
function showWhole(view) {
  const all = bothOr(view).filter((one) => one.page?.size);
  const fits = all.map((one) => {
    const [w, h] = one.turn % 180 ? [...one.page.size].reverse() : one.page.size;
    return Math.min((one.area.clientWidth - 8) / w, (one.area.clientHeight - 8) / h);
  });
  all.forEach((one) => {
    const [x, y] = one.page.size.map((n) => n / 2);
    Object.assign(one, { scale: clamp(Math.min(...fits), LEAST, MOST), x, y, whole: true });
    draw(one);
  });
  moved();
}

function turnView(view, by = 90) {
  view.turn = (view.turn + by + 360) % 360;
  relay();
}

// Draws again after the panes or the pages have another shape; whole pages stay whole.
function relay() {
  const whole = views.filter((view) => view.whole);
  if (whole.length) showWhole(whole[0]);
  if (whole.length > 1 && !byId("together").checked) showWhole(whole[1]);
  views.forEach(draw);
  moved();
}

function grasp(view, event) {
  if (event.target.closest("button") || (event.pointerType === "mouse" && event.button)) return;
  if (event.isTrusted) view.area.setPointerCapture(event.pointerId);
  view.area.classList.add("held");
  view.touches.set(event.pointerId, offset(view, event));
}

function drag(view, event) {
  const before = view.touches.get(event.pointerId);
  if (!before) return;
  const now = offset(view, event);
  const other = [...view.touches].find(([id]) => id !== event.pointerId)?.[1];
  view.touches.set(event.pointerId, now);
  if (!other) return moveBy(view, now[0] - before[0], now[1] - before[1]);
  const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
  moveBy(view, (now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  if (apart(before) > 0) zoomAt(view, apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
}

function showPage(view, page) {
  Object.assign(view, { page, turn: 0, sharp: false });
  view.pane.setAttribute("aria-label", say(view.i ? "pane.match" : "pane.query") + " " + page.id);
  view.name.textContent = view.name.title = page.id;
  view.original.href = page.href;
  view.image.alt = page.id;
  view.crop.replaceChildren(view.image);
  const source = page.large || page.image;
  view.image.hidden = !source;
  if (source) view.image.src = source;
  else view.crop.append(element("p", "missing", say("picture.none", { reason: page.missing })));
}

// The original file in place of the picture in this report, where a browser can open it.
function sharpen(view) {
  const { page } = view;
  if (view.sharp || page.asked || !page.plain || !page.size || !view.source) return;
  if (view.scale < ENLARGED * (view.source / page.size[0])) return;
  page.asked = true;
  const original = new Image();
  original.addEventListener("load", () => {
    const [w, h] = [original.naturalWidth, original.naturalHeight];
    const fits = page.box ? page.box[2] <= w && page.box[3] <= h : page.size[0] === w && page.size[1] === h;
    page.full = fits ? [w, h] : null;
    views.filter((one) => one.page === page).forEach(draw);
  });
  original.src = page.href;
}

function draw(view) {
  const { page, crop, image } = view;
  if (!page?.size || !view.area.clientWidth) return;
  const [w, h] = page.size.map((n) => n * view.scale);
  crop.style.width = `${w}px`;
  crop.style.height = `${h}px`;
  const [left, top] = onScreen(view, 0, 0);
  crop.style.transform = `translate(${left.toFixed(2)}px, ${top.toFixed(2)}px) rotate(${view.turn}deg)`;
  if (page.full && !view.sharp) {
    view.sharp = true;
    image.src = page.href;
  }
  const [fullW, fullH] = view.sharp && page.box ? page.full : page.size;
  image.style.width = `${fullW * view.scale}px`;
  image.style.height = `${fullH * view.scale}px`;
  image.style.left = view.sharp && page.box ? `${-page.box[0] * view.scale}px` : "0";
  image.style.top = view.sharp && page.box ? `${-page.box[1] * view.scale}px` : "0";
  // Enlarged pictures show their pixels less than a blur would hide them.
  view.source = view.sharp ? page.size[0] : image.naturalWidth;
  sharpen(view);
}
