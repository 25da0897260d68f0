
// format: formats sizes, times, bytes and JSON. Changes only elements that it makes.

const utf8 = new TextEncoder();
const wholeNumber = new Intl.NumberFormat("en");

function byteLabel(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = -1;
  do { value /= 1024; unit += 1; } while (value >= 1024 && unit < units.length - 1);
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} ${units[unit]}`;
}

function countLabel(count) {
  return wholeNumber.format(count);
}

function clockLabel(time) {
  const two = (n) => String(n).padStart(2, "0");
  const clock = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return `${clock}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

function durationLabel(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
}

function latencyLabel(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(2)} ms`;
  if (milliseconds < 1000) return `${milliseconds.toFixed(0)} ms`;
  return `${(milliseconds / 1000).toFixed(2)} s`;
}

// Makes an element: make("p", { className: "note" }, "text", child).
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function hex(byte) {
  return byte.toString(16).padStart(2, "0");
}

function hexString(bytes) {
  return Array.from(bytes, hex).join("");
}

// Parses bytes in hexadecimal, with or without spaces, commas, colons, 0x.
function parseHex(text) {
  const digits = text.replace(/0x|\\x/gi, " ").replace(/[\s,:;_-]+/g, "");
  const stray = digits.match(/[^0-9a-f]/i);
  if (stray) throw new Error(`“${stray[0]}” is not a hexadecimal digit`);
  if (digits.length % 2) throw new Error("one digit is missing: two make a byte");
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

// Rows of offset, bytes and characters, as elements.
function hexDump(bytes, perRow) {
  const rows = document.createDocumentFragment();
  for (let offset = 0; offset < bytes.length; offset += perRow) {
    const part = bytes.subarray(offset, offset + perRow);
    let columns = "";
    let characters = "";
    for (let at = 0; at < perRow; at += 1) {
      const gap = at === perRow / 2 ? " " : "";
      columns += gap + (at < part.length ? `${hex(part[at])} ` : "   ");
      if (at < part.length) characters += part[at] > 31 && part[at] < 127 ? String.fromCharCode(part[at]) : "·";
    }
    rows.append(
      make("span", { className: "offset" }, offset.toString(16).padStart(8, "0")), `  ${columns} `,
      make("span", { className: "ascii" }, characters), "\n");
  }
  return rows;
}

function isJson(text) {
  if (!/^\s*[[{]/.test(text)) return false;
  try { JSON.parse(text); return true; } catch { return false; }
}

// Indents JSON by its tokens, so that numbers and repeated keys stay as they were sent.
function prettyJson(text) {
  const out = document.createDocumentFragment();
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[^\s[\]{},:"]+|[[\]{},:]/g) ?? [];
  let depth = 0;
  const newLine = () => out.append("\n" + "  ".repeat(depth));
  tokens.forEach((token, at) => {
    const next = tokens[at + 1];
    if (token === "{" || token === "[") {
      out.append(token);
      depth += 1;
      if (next !== "}" && next !== "]") newLine();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      if (tokens[at - 1] !== "{" && tokens[at - 1] !== "[") newLine();
      out.append(token);
    } else if (token === ",") {
      out.append(token);
      newLine();
    } else if (token === ":") {
      out.append(": ");
    } else {
      out.append(make("span", { className: `j-${jsonKind(token, next)}` }, token));
    }
  });
  return out;
}

function jsonKind(token, next) {
  if (token.startsWith('"')) return next === ":" ? "key" : "string";
  return /^[-\d]/.test(token) ? "number" : "literal";
}

function base64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary);
}

function download(name, parts, type) {
  const url = URL.createObjectURL(new Blob(parts, { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
