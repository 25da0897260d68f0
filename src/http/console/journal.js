
// journal: the list of messages and events. Keeps the newest ones within the two bounds below, and draws with a short
// delay, so that drawing does not delay the reply to a message.

const MOST_ENTRIES = 2000;
const MOST_BYTES = 64 * 1024 * 1024;
// Of one message; the rest is counted, but not kept.
const MOST_OF_ONE = 1024 * 1024;
const PREVIEW = 1000;
const PREVIEW_BYTES = 200;
const MOST_PRETTY = 16 * 1024;
const FIRST_TEXT = 32 * 1024;
const FIRST_DUMP = 4 * 1024;
const MOST_JSON = 256 * 1024;
const SAY_EVERY = 1000;
const DRAW_AFTER = 30;

class Journal {
  constructor(list, { onChange, onReuse, announce }) {
    this.list = list;
    this.onChange = onChange;
    this.onReuse = onReuse;
    this.announce = announce;
    this.entries = [];
    this.bytes = 0;
    this.dropped = 0;
    this.drawn = 0; // entries[0..drawn) have a row
    this.drawIsDue = false;
    this.pretty = false;
    this.follow = true;
    this.direction = "all";
    this.said = -SAY_EVERY;
    this.matches = () => true;
    list.addEventListener("click", (event) => this.#click(event));
    list.addEventListener("keydown", (event) => this.#move(event));
    list.addEventListener("scroll", () => this.#scrolled(), { passive: true });
  }

  // data: a string or a Uint8Array. Returns the entry.
  message(direction, data, size, rtt) {
    const isText = typeof data === "string";
    const kept = data.length > MOST_OF_ONE ? data.slice(0, MOST_OF_ONE) : data;
    return this.#add({ direction, kind: isText ? "text" : "binary", data: kept, whole: kept.length === data.length, size, rtt });
  }

  // tone: "", "good", "bad" or "why"; more: a second paragraph.
  event(text, tone = "", more = "") {
    this.announce(text);
    return this.#add({ direction: "event", kind: "event", data: text, more, tone, size: 0, whole: true });
  }

  clear() {
    this.entries = [];
    this.bytes = 0;
    this.dropped = 0;
    this.drawn = 0;
    this.list.replaceChildren();
    this.onChange();
  }

  setFilter(text) {
    this.matches = matcher(text);
    this.#refilter();
  }

  setDirection(direction) {
    this.direction = direction;
    this.#refilter();
  }

  setPretty(pretty) {
    this.pretty = pretty;
    for (const row of this.list.children) {
      showPreview(row, pretty);
      if (!row.classList.contains("open")) continue;
      row.entry.view = undefined;
      this.#openDetail(row);
    }
    this.#showNewest();
  }

  setFollow(follow) {
    this.follow = follow;
    this.#showNewest();
    this.onChange();
  }

  focusNewest() {
    const lines = this.#lines();
    this.#focus(lines[lines.length - 1]);
  }

  // One JSON object per line, without the messages that the filter hides.
  toJsonLines() {
    return this.entries.filter((entry) => this.#isShown(entry)).map((entry) => {
      const line = { time: entry.time.toISOString(), direction: entry.direction, type: entry.kind, size: entry.size };
      if (entry.kind === "binary") line.base64 = base64(entry.data);
      else line.text = entry.data + (entry.more ? ` ${entry.more}` : "");
      if (!entry.whole) line.truncated = true;
      if (entry.rtt !== undefined) line.rtt_ms = entry.rtt;
      return JSON.stringify(line) + "\n";
    });
  }

  #add(entry) {
    entry.time = new Date();
    entry.cost = (entry.kind === "binary" ? 1 : 2) * entry.data.length + 200;
    this.entries.push(entry);
    this.bytes += entry.cost;
    while (this.entries.length > MOST_ENTRIES || (this.bytes > MOST_BYTES && this.entries.length > 1)) this.#drop();
    if (!this.drawIsDue) {
      // A page in the background gets no frames: it is drawn when it returns.
      this.drawIsDue = true;
      setTimeout(() => requestAnimationFrame(() => { this.drawIsDue = false; this.#draw(); }), DRAW_AFTER);
    }
    return entry;
  }

  #drop() {
    this.bytes -= this.entries.shift().cost;
    this.dropped += 1;
    if (this.drawn > 0) {
      this.drawn -= 1;
      this.list.firstElementChild.remove();
    }
  }

  #draw() {
    const rows = document.createDocumentFragment();
    for (const entry of this.entries.slice(this.drawn)) {
      const row = makeRow(entry, this.pretty);
      row.hidden = !this.#isShown(entry);
      rows.append(row);
    }
    this.drawn = this.entries.length;
    this.list.append(rows);
    if (!this.list.querySelector('.line[tabindex="0"]')) this.#lines().at(-1)?.setAttribute("tabindex", "0");
    this.#showNewest();
    this.#sayNewest();
    this.onChange();
  }

  // For screen readers, no faster than they speak.
  #sayNewest() {
    const newest = this.entries.at(-1);
    const now = performance.now();
    if (newest?.direction !== "received" || now - this.said < SAY_EVERY) return;
    this.said = now;
    this.announce(`Received ${newest.kind}: ${previewText(newest).slice(0, 100)}`);
  }

  #showNewest() {
    if (!this.follow) return;
    this.list.scrollTop = this.list.scrollHeight;
  }

  #isShown(entry) {
    return (this.direction === "all" || this.direction === entry.direction) && this.matches(entry);
  }

  #refilter() {
    for (const row of this.list.children) row.hidden = !this.#isShown(row.entry);
    this.#showNewest();
    this.onChange();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.list;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    if (atEnd === this.follow || this.drawIsDue) return;
    this.follow = atEnd;
    this.onChange();
  }

  #click(event) {
    const row = event.target.closest(".row");
    if (event.target.closest("button.line")) this.#toggle(row);
    const action = event.target.closest(".detail button")?.dataset;
    if (!action) return;
    if (action.view) row.entry.view = action.view;
    if (action.more) row.entry.shown = Number(action.more);
    if (action.view || action.more) this.#openDetail(row);
    if (action.act) this.#act(action.act, row.entry, event.target);
  }

  #act(act, entry, button) {
    if (act === "reuse") this.onReuse(entry);
    if (act === "save") download(`message.${entry.kind === "text" ? "txt" : "bin"}`, [entry.data], "application/octet-stream");
    if (act === "copy") {
      const text = entry.kind === "text" ? entry.data : hexString(entry.data);
      const said = (word) => { button.textContent = word; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
      // The clipboard needs https or localhost.
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said("Copied"), () => said("Refused"));
      else said("Not allowed without https");
    }
  }

  #toggle(row) {
    const line = row.querySelector(".line");
    if (row.classList.toggle("open")) {
      this.#openDetail(row);
      line.setAttribute("aria-expanded", "true");
    } else {
      row.querySelector(".detail")?.remove();
      line.setAttribute("aria-expanded", "false");
    }
  }

  #openDetail(row) {
    row.querySelector(".detail")?.remove();
    row.append(makeDetail(row.entry, this.pretty, this.entries, bytesPerRow(this.list)));
  }

  #lines() {
    return [...this.list.querySelectorAll(".row:not([hidden]) > .line")];
  }

  #focus(line) {
    if (!line) return;
    for (const other of this.list.querySelectorAll('.line[tabindex="0"]')) other.tabIndex = -1;
    line.tabIndex = 0;
    line.focus();
  }

  #move(event) {
    if (!event.target.matches(".line")) return;
    const lines = this.#lines();
    const at = lines.indexOf(event.target);
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: lines.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#focus(lines[Math.max(0, Math.min(to, lines.length - 1))]);
  }
}

const ARROWS = { sent: "↑", received: "↓", event: "·" };

function makeRow(entry, pretty) {
  const isEvent = entry.direction === "event";
  const line = make(isEvent ? "div" : "button", { className: "line", tabIndex: -1 });
  const preview = make("span", { className: "preview" });
  const time = make("time", { dateTime: entry.time.toISOString() }, clockLabel(entry.time));
  const arrow = make("span", { className: "arrow" }, ARROWS[entry.direction]);
  arrow.setAttribute("aria-hidden", "true");
  line.append(time, arrow, preview);
  if (!isEvent) {
    line.type = "button";
    line.setAttribute("aria-expanded", "false");
    const rtt = entry.rtt === undefined ? "" : `⇄ ${latencyLabel(entry.rtt)}`;
    line.append(make("span", { className: "rtt", title: "Round-trip time" }, rtt));
    line.append(make("span", { className: "size" }, byteLabel(entry.size)));
  }
  const row = make("li", { className: `row ${entry.direction} ${entry.tone ?? ""}` }, line);
  row.entry = entry;
  showPreview(row, pretty);
  return row;
}

// Shows the beginning of a message in its row; if pretty, JSON is indented.
function showPreview(row, pretty) {
  const { entry } = row;
  const isPretty = pretty && entry.data.length <= MOST_PRETTY && canPretty(entry);
  const parts = [isPretty ? prettyJson(entry.data) : previewText(entry)];
  if (entry.kind === "binary") parts.unshift(make("span", { className: "tag" }, "bin"));
  if (entry.direction !== "event") parts.unshift(make("span", { className: "unseen" }, `${entry.direction}: `));
  if (entry.more) parts.push(make("span", { className: "more-text" }, entry.more));
  row.querySelector(".preview").replaceChildren(...parts);
  row.classList.toggle("pretty", isPretty);
}

function canPretty(entry) {
  return entry.kind === "text" && entry.whole && entry.data.length <= MOST_JSON && isJson(entry.data);
}

function previewText(entry) {
  if (entry.kind === "event") return entry.data;
  if (entry.size === 0) return "(empty)";
  if (entry.kind === "binary") {
    return Array.from(entry.data.subarray(0, PREVIEW_BYTES), hex).join(" ") + (entry.size > PREVIEW_BYTES ? " …" : "");
  }
  return entry.data.slice(0, PREVIEW).replace(/\r\n|\r|\n/g, "⏎").replace(/\t/g, "→");
}

// As many as fit: a dump has 4 columns per byte and 14 more, of 7.6 pixels each.
function bytesPerRow(list) {
  const columns = (list.clientWidth - 90) / 7.6;
  return [32, 16].find((count) => count * 4 + 14 <= columns) ?? 8;
}

function makeDetail(entry, pretty, entries, perRow) {
  const hasJson = canPretty(entry);
  const view = entry.view ?? (entry.kind === "binary" ? "hex" : hasJson && pretty ? "json" : "text");
  const tools = make("div", { className: "detail-tools" });
  const choices = { text: "Text", json: "JSON", hex: "Hex" };
  for (const name of Object.keys(choices)) {
    if (name === "json" && !hasJson) continue;
    const button = make("button", { type: "button" }, choices[name]);
    button.dataset.view = name;
    button.setAttribute("aria-pressed", String(name === view));
    tools.append(button);
  }
  const acts = { copy: "Copy", save: "Save", reuse: "Edit and send" };
  for (const act of Object.keys(acts)) {
    const button = make("button", { type: "button" }, acts[act]);
    button.dataset.act = act;
    tools.append(button);
  }
  const before = entries[entries.indexOf(entry) - 1];
  const since = before ? `, ${latencyLabel(entry.time - before.time)} after the one before` : "";
  const cut = entry.whole ? "" : `, the first ${byteLabel(MOST_OF_ONE)} kept`;
  tools.append(make("span", { className: "note" }, `${entry.kind}, ${countLabel(entry.size)} bytes${cut}${since}`));
  return make("div", { className: "detail" }, tools, ...makeBody(entry, view, perRow));
}

function makeBody(entry, view, perRow) {
  const body = make("pre", { tabIndex: 0 });
  if (view === "json") {
    body.append(prettyJson(entry.data));
    return [body];
  }
  let shown;
  let length;
  if (view === "hex") {
    const bytes = entry.kind === "text" ? utf8.encode(entry.data) : entry.data;
    length = bytes.length;
    shown = entry.shown ?? FIRST_DUMP;
    body.className = "dump";
    body.append(hexDump(bytes.subarray(0, shown), perRow));
  } else {
    const text = entry.kind === "text" ? entry.data : new TextDecoder().decode(entry.data);
    length = text.length;
    shown = entry.shown ?? FIRST_TEXT;
    body.append(text.slice(0, shown));
  }
  if (shown >= length) return [body];
  const more = make("button", { type: "button" }, `Show more (${byteLabel(length - shown)} left)`);
  more.dataset.more = String(shown * 4);
  return [body, make("div", { className: "detail-tools" }, more)];
}

// A filter: text, hexadecimal for binary messages, or /pattern/.
function matcher(text) {
  if (!text) return () => true;
  let test = (candidate) => candidate.toLowerCase().includes(text.toLowerCase());
  const pattern = text.match(/^\/(.+)\/([iu]*)$/);
  if (pattern) {
    try {
      const expression = new RegExp(pattern[1], pattern[2]);
      test = (candidate) => expression.test(candidate);
    } catch { /* not a pattern yet: taken as text */ }
  }
  const plainHex = text.replace(/\s/g, "").toLowerCase();
  return (entry) => entry.kind === "binary"
    ? hexString(entry.data.subarray(0, FIRST_DUMP)).includes(plainHex) || test(new TextDecoder().decode(entry.data))
    : test(entry.data);
}
