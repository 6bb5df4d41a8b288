"use strict";
// The data of the file, its words, and short names for what all scripts do. Text from the manifest
// is inserted as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// The text of a key of the table of words, as `speaker` of words.py returns it.
function say(key, values = {}) {
  const text = (values.n === 1 && data.words[key + ".one"]) || data.words[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(className, text, act) {
  const node = element("button", className, text);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

const distanceText = (d) => d.toFixed(d < 0.1 ? 4 : 3);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function step(selector, from, by) {
  const all = [...document.querySelectorAll(selector)];
  const at = all.indexOf(from);
  return all[at < 0 ? 0 : clamp(at + by, 0, all.length - 1)];
}
