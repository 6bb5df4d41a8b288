// Decisions about pairs of pages: kept in the browser, undone, saved and loaded, and the groups that
// accepted pairs form.
//
// A page is known by the digest of its image and box, else by its name. So decisions survive another
// order, another run, and other names of the files.
const DECISIONS = { accept: "a", reject: "r", unsure: "u" };
// All files of a report share their decisions.
const STORE = "decisions:" + location.pathname.replace(/_\d+(?=\.html$)/, "");
const UNDOS = 100;
// pairName -> {query, page, choice, note, group, rank, distance}
const decisions = new Map();
const earlier = [];

const identity = ({ id, digest }) => digest || id;

// Among the pages of one collection, a decision about A and B is one about B and A.
function pairName(query, page) {
  const pair = [identity(query), identity(page)];
  return JSON.stringify(data.one_collection ? pair.sort() : pair);
}

// The pages of this file that can be queries ("p", "q") and matches ("p", "g").
const pagesBut = (key) => Object.entries(data.pages).filter(([k]) => k[0] !== key).map(([, page]) => page);
const pagesOf = { query: pagesBut("g"), page: pagesBut("q") };

// The pages of this file that a decision speaks of: copies of a page are several.
function here(role, { id, digest }) {
  const digests = digest && pagesOf[role].some((page) => page.digest);
  return pagesOf[role].filter((page) => (digests ? page.digest === digest : page.id === id));
}

function remember({ query, page, choice, note = "", group = "", rank = "", distance = "" }) {
  // Older files and older reports name pages only.
  const of = (role, { id, digest = "" }) => ({ id, digest: (here(role, { id, digest })[0] || { digest }).digest });
  const pair = { query: of("query", query), page: of("page", page), choice, note, group, rank, distance };
  decisions.set(pairName(pair.query, pair.page), pair);
  return pair;
}

function restore(text) {
  JSON.parse(text).forEach((entry) => {
    if (!Array.isArray(entry)) return remember(entry);
    const [first, ...more] = entry;
    // As older versions stored them.
    if (more.length > 1) {
      return remember({ query: { id: first, digest: more[2] }, page: { id: more[0], digest: more[3] }, choice: more[1] });
    }
    const [query, page] = JSON.parse(first);
    return remember({ query: { id: query }, page: { id: page }, choice: more[0] });
  });
}

try {
  restore(localStorage.getItem(STORE) || "[]");
} catch { /* without storage, decisions last until the file is closed */ }

const stored = () => JSON.stringify([...decisions.values()]);
const decisionOn = (query, page) => decisions.get(pairName(query, page));

// Changes decisions so that the change can be undone, and shows them.
function change(act) {
  earlier.push(stored());
  if (earlier.length > UNDOS) earlier.shift();
  act();
  showDecided();
}

function undo() {
  if (!earlier.length) return;
  decisions.clear();
  restore(earlier.pop());
  showDecided();
}

const placeOf = (query, page) => {
  for (const sheet of data.sheets) {
    if (data.pages[sheet.q] !== query) continue;
    const at = sheet.hits.findIndex(([key]) => data.pages[key] === page);
    if (at >= 0) return { rank: at + 1, distance: sheet.hits[at][1] };
  }
  return {};
};

function decide(query, page, choice) {
  const known = decisionOn(query, page);
  change(() => {
    if (known?.choice === choice) decisions.delete(pairName(query, page));
    else remember({ ...known, query, page, choice, ...placeOf(query, page) });
  });
}

// A note needs a decision beside it in the file: without one, the pair is unsure.
function annotate(query, page, note) {
  const known = decisionOn(query, page);
  if ((known?.note || "") === note) return;
  change(() => remember({ choice: "unsure", ...placeOf(query, page), ...known, query, page, note }));
}

function showDecided() {
  byId("decided").textContent = decisions.size;
  try {
    localStorage.setItem(STORE, stored());
  } catch { /* decisions last until the file is closed */ }
  byId("undo").disabled = byId("takeback").disabled = !earlier.length;
  document.dispatchEvent(new Event("decided"));
}

// The pages that accepted pairs connect: [{members: [identity], pages: {identity: page}, pairs, name,
// rejected}], largest first. A group is named by the names that its pairs have.
function groupsOf() {
  const parent = new Map();
  const root = (name) => {
    while (parent.get(name) !== name) name = parent.get(name);
    return name;
  };
  const pages = {};
  const accepted = [...decisions.values()].filter(({ choice }) => choice === "accept");
  accepted.forEach(({ query, page }) => {
    [query, page].forEach((one) => {
      pages[identity(one)] = one;
      if (!parent.has(identity(one))) parent.set(identity(one), identity(one));
    });
    parent.set(root(identity(page)), root(identity(query)));
  });
  const groups = new Map();
  [...parent.keys()].forEach((name) => {
    if (!groups.has(root(name))) groups.set(root(name), { members: [], pages, pairs: [], rejected: [] });
    groups.get(root(name)).members.push(name);
  });
  accepted.forEach((pair) => groups.get(root(identity(pair.query))).pairs.push(pair));
  [...decisions.values()].filter(({ choice }) => choice === "reject").forEach((pair) => {
    const [a, b] = [pair.query, pair.page].map(identity);
    if (parent.has(a) && parent.has(b) && root(a) === root(b)) groups.get(root(a)).rejected.push(pair);
  });
  groups.forEach((group) => {
    group.name = [...new Set(group.pairs.map((pair) => pair.group).filter(Boolean))].join(" + ");
  });
  return [...groups.values()].sort((a, b) => b.members.length - a.members.length);
}

function nameGroup(group, name) {
  change(() => group.pairs.forEach((pair) => { pair.group = name; }));
}

function decisionsCsv() {
  const nameNow = (role, page) => {
    const same = here(role, page);
    return same.some(({ id }) => id === page.id) || !same.length ? page.id : same[0].id;
  };
  const shownAt = new Map();
  data.sheets.forEach((sheet) => sheet.hits.forEach(([key, distance], i) => {
    shownAt.set(JSON.stringify([sheet.q, key].map((k) => identity(data.pages[k]))), [i + 1, distance]);
  }));
  const names = new Map();
  groupsOf().forEach((group) => group.pairs.forEach((pair) => names.set(pair, group.name)));
  const all = [...decisions.values()];
  const digests = all.some(({ query, page }) => query.digest || page.digest);
  const noted = all.some(({ note }) => note);
  const named = [...names.values()].some(Boolean);
  const lines = all.map((pair) => {
    const { query, page, choice } = pair;
    const now = shownAt.get(JSON.stringify([query, page].map(identity))) || [pair.rank, pair.distance];
    return [
      quoted(nameNow("query", query)), quoted(nameNow("page", page)), ...now, choice,
      ...(digests ? [query.digest, page.digest] : []),
      ...(noted ? [quoted(pair.note)] : []), ...(named ? [quoted(names.get(pair) || "")] : []),
    ].join(",");
  });
  const head = ["query", "page", "rank", "distance", "decision", ...(digests ? ["query_digest", "page_digest"] : [])];
  return [[...head, ...(noted ? ["note"] : []), ...(named ? ["group"] : [])].join(","), ...lines].join("\n") + "\n";
}

function loadDecisions(text) {
  const [head, ...rows] = readCsv(text);
  const names = head.map((name) => name.trim().toLowerCase());
  const at = (name) => names.indexOf(name);
  if (["query", "page", "decision"].some((name) => at(name) < 0)) {
    byId("count").textContent = say("load.refused");
    return;
  }
  const [notHere, copies, contradictions] = [new Set(), new Set(), new Set()];
  const loaded = new Map();
  change(() => rows.forEach((row) => {
    const cell = (name) => (row[at(name)] || "").trim();
    const choice = cell("decision").toLowerCase();
    if (!(choice in DECISIONS)) return;
    const pair = remember({
      query: { id: row[at("query")], digest: cell("query_digest").toLowerCase() },
      page: { id: row[at("page")], digest: cell("page_digest").toLowerCase() },
      choice, note: cell("note"), group: cell("group"), rank: cell("rank"), distance: cell("distance"),
    });
    const name = pairName(pair.query, pair.page);
    if (loaded.has(name) && loaded.get(name) !== choice) contradictions.add(`${pair.query.id} – ${pair.page.id}`);
    loaded.set(name, choice);
    ["query", "page"].forEach((role) => {
      const same = here(role, pair[role]);
      if (!same.length) notHere.add(pair[role].id);
      if (same.length > 1) copies.add(same.map(({ id }) => id).join(", "));
    });
  }));
  refresh();
  const some = (list) => [...list].slice(0, 3).join("; ") + (list.size > 3 ? "; ..." : "");
  const notes = Object.entries({ "load.absent": notHere, "load.copies": copies, "load.contradictions": contradictions })
    .filter(([, list]) => list.size)
    .map(([key, list]) => say(key, { n: list.size, names: some(list) }));
  if (notes.length) byId("count").textContent = notes.join(". ");
}
