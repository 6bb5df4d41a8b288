// Reads and writes CSV as spreadsheets do.
const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;

// The text of a file: UTF-8 or UTF-16, with or without a byte-order mark, else the code page of
// Western Windows.
function decode(bytes) {
  const with16 = (name) => new TextDecoder(name).decode(bytes);
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return with16("utf-16le");
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return with16("utf-16be");
  if (bytes[1] === 0 && bytes[3] === 0) return with16("utf-16le");
  if (bytes[0] === 0 && bytes[2] === 0) return with16("utf-16be");
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return with16("windows-1252");
  }
}

// Without a byte-order mark, a spreadsheet does not know that letters beyond ASCII are UTF-8.
const withMark = (text) => (/[^\x00-\x7f]/.test(text) ? "\uFEFF" + text : text);

// Spreadsheets may separate cells by semicolons or tabs, and say so in a first line `sep=;`.
function separatorOf(text) {
  const said = /^\uFEFF?"?sep=(.)"?[,;\t]*\r?\n/i.exec(text);
  if (said) return [said[1], text.slice(said[0].length)];
  const table = text.replace(/^\uFEFF/, "");
  const count = (separator) => table.split(/\r?\n/, 1)[0].split(separator).length;
  return [[",", ";", "\t"].reduce((a, b) => (count(b) > count(a) ? b : a)), table];
}

function readCsv(text) {
  const [separator, table] = separatorOf(text);
  const mark = `\\u${separator.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const cell = new RegExp(`(?:"((?:[^"]|"")*)"|([^"${mark}\\n\\r]*))(${mark}|\\r?\\n|$)`, "g");
  const rows = [[]];
  for (const [, inQuotes, plain, end] of table.matchAll(cell)) {
    rows.at(-1).push(inQuotes === undefined ? plain : inQuotes.replaceAll('""', '"'));
    if (end === "") break;
    if (end !== separator) rows.push([]);
  }
  return rows;
}
