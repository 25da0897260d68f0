
// main: connects the page's elements with the connection, the composer and the journal.

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);

let figuresDue = false;

// Runs action after the next frame, so that drawing does not delay the reply to a message.
function afterFrame(action) {
  requestAnimationFrame(() => setTimeout(action));
}

const journal = new Journal($("list"), {
  onChange: () => showJournal(),
  onReuse: (entry) => composer.reuse(entry),
  announce: (text) => { $("announce").textContent = text; },
});
const connection = new Connection(journal, () => showConnection());
const composer = new Composer({
  form: $("composer"), text: $("text"), hex: $("hex"), file: $("file"), fileLabel: $("file-label"),
  fileName: $("file-name"), note: $("compose-note"), send: $("send"), modes: document.querySelectorAll("[data-mode]"),
}, (data) => afterFrame(() => connection.canSend && connection.send(data)));

const wide = matchMedia("(min-width: 861px)");

// ---- connection

const STATES = {
  closed: "Not connected", connecting: "Connecting", open: "Connected", closing: "Closing", failed: "Failed",
  waiting: "Reconnecting",
};

function toggleConnection() {
  if (connection.isBusy || connection.state === "waiting") connection.close();
  else connect();
}

function connect() {
  const resource = $("resource").value.trim();
  const fault = !resource.startsWith("/") ? "A resource begins with a slash."
    : resource.includes("#") ? "A resource has no fragment (#)." : "";
  $("resource").setAttribute("aria-invalid", String(Boolean(fault)));
  if (fault) {
    journal.event(fault, "bad");
    $("resource").focus();
    return;
  }
  history.replaceState(null, "", `#${resource}`);
  connection.connect(resource, offered(), protocolsOf(resource));
}

function showConnection() {
  const { state } = connection;
  const resource = connection.resource ?? "";
  $("state").dataset.state = state;
  $("state-text").textContent = state === "open" ? `Connected to ${resource}` : STATES[state];
  document.title = `${state === "open" ? `${resource} · ` : ""}wshd console`;
  const leaves = connection.isBusy || state === "waiting";
  $("connect").textContent = { connecting: "Cancel", open: "Disconnect", waiting: "Stop" }[state] ?? "Connect";
  $("connect").classList.toggle("leave", leaves);
  $("connect").disabled = state === "closing";
  // For a narrow screen, where the form scrolls away.
  $("leave").hidden = !leaves;
  $("leave").textContent = $("connect").textContent;
  $("empty-text").textContent = connection.canSend ? "Connected. No messages yet." : "Choose a resource and connect.";
  composer.setReady(connection.canSend);
  checkClose();
  const socket = connection.openedAt === undefined ? null : connection.socket;
  $("agreed").hidden = !socket;
  $("fact-protocol").textContent = socket?.protocol || "none";
  $("fact-extensions").textContent = socket?.extensions || "none";
  showResources();
  showFigures();
  // On a narrow screen messages and composer are further down.
  if (state === "open" && !wide.matches) scrollTo(0, document.documentElement.scrollHeight);
}

function showFigures() {
  const { sent, received, times, openedAt, closedAt, socket } = connection;
  $("sent-count").textContent = countLabel(sent.count);
  $("sent-size").textContent = byteLabel(sent.bytes);
  $("received-count").textContent = countLabel(received.count);
  $("received-size").textContent = byteLabel(received.bytes);
  $("rtt-last").textContent = times.length ? latencyLabel(times.at(-1)) : "–";
  $("rtt-median").textContent = times.length ? `median ${latencyLabel(median(times))}` : "no echo yet";
  const end = connection.state === "open" || connection.state === "closing" ? performance.now() : closedAt;
  $("duration").textContent = openedAt === undefined ? "–" : durationLabel(end - openedAt);
  $("buffered").textContent = socket?.bufferedAmount ? `${byteLabel(socket.bufferedAmount)} queued` : "nothing queued";
  const top = Math.max(...times, 0.001);
  const points = times.map((time, at) => `${(at * 240 / Math.max(times.length - 1, 1)).toFixed(1)} ${(34 - 32 * time / top).toFixed(1)}`);
  $("spark").firstElementChild.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
}

function median(values) {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

function showResources() {
  const path = $("resource").value.split("?")[0];
  for (const chip of $("resources").children) chip.setAttribute("aria-pressed", String(chip.textContent === path));
  const known = protocolsOf(path);
  if (known.join() !== [...$("known-protocols").children].map((chip) => chip.textContent).join()) {
    $("known-protocols").replaceChildren(...known.map((name) => makeChip(name, () => offer(name))));
  }
  showProtocols();
}

function makeChip(text, action) {
  const chip = make("button", { type: "button" }, text);
  chip.addEventListener("click", action);
  return chip;
}

// What the fields of the form mean.

function protocolsOf(resource) {
  const path = resource.split("?")[0];
  return facts.resources.find((known) => known.path === path)?.protocols ?? [];
}

function offered() {
  return $("protocols").value.split(",").map((name) => name.trim()).filter(Boolean);
}

// Adds a subprotocol to the offered ones, or removes it.
function offer(name) {
  const names = offered();
  $("protocols").value = (names.includes(name) ? names.filter((other) => other !== name) : [...names, name]).join(", ");
  showProtocols();
}

function showProtocols() {
  const names = offered();
  for (const chip of $("known-protocols").children) {
    chip.setAttribute("aria-pressed", String(names.includes(chip.textContent)));
  }
}

function checkClose() {
  const code = Number($("code").value);
  const length = utf8.encode($("reason").value).length;
  const codeFault = !(code === 1000 || (code >= 3000 && code <= 4999)) || !/^\d{4}$/.test($("code").value);
  const reasonFault = length > 123;
  $("code").setAttribute("aria-invalid", String(codeFault));
  $("reason").setAttribute("aria-invalid", String(reasonFault));
  const note = $("close-note");
  note.classList.toggle("bad", codeFault || reasonFault);
  note.textContent = reasonFault ? `The reason takes ${length} bytes of 123.`
    : "1000, or 3000 to 4999: browsers send no other code.";
  $("close").disabled = codeFault || reasonFault || connection.state !== "open";
}

$("connect-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = document.activeElement === $("resource") && connection.isBusy;
  if (typed && $("resource").value.trim() !== connection.resource) connect();
  else toggleConnection();
});
$("close").addEventListener("click", () => connection.close(Number($("code").value), $("reason").value));
for (const id of ["code", "reason"]) {
  $(id).addEventListener("input", checkClose);
  $(id).addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    $("close").click();
  });
}
$("leave").addEventListener("click", toggleConnection);
$("resource").addEventListener("input", showResources);
$("protocols").addEventListener("input", showProtocols);
$("auto").addEventListener("change", () => { connection.auto = $("auto").checked; });

// ---- journal

function showJournal() {
  const { entries, dropped, follow, list } = journal;
  $("empty").hidden = entries.length > 0;
  $("follow").setAttribute("aria-pressed", String(follow));
  $("newest").hidden = follow || list.scrollHeight <= list.clientHeight;
  $("keeps").textContent = `Keeps the newest ${countLabel(MOST_ENTRIES)} messages, at most ${byteLabel(MOST_BYTES)}`
    + (dropped ? `; ${countLabel(dropped)} older ones are gone.` : ".");
  if (figuresDue) return;
  figuresDue = true;
  requestAnimationFrame(() => { figuresDue = false; showFigures(); });
}

function saveJournal() {
  const stamp = new Date().toISOString().replace(/[:.]/g, "-");
  download(`wshd-${stamp}.jsonl`, journal.toJsonLines(), "application/jsonl");
}

$("filter").addEventListener("input", () => journal.setFilter($("filter").value.trim()));
for (const button of document.querySelectorAll("[data-direction]")) {
  button.addEventListener("click", () => {
    journal.setDirection(button.dataset.direction);
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
  });
}
$("pretty").addEventListener("click", () => {
  journal.setPretty(!journal.pretty);
  $("pretty").setAttribute("aria-pressed", String(journal.pretty));
});
$("follow").addEventListener("click", () => journal.setFollow(!journal.follow));
$("newest").addEventListener("click", () => journal.setFollow(true));
$("save").addEventListener("click", saveJournal);
$("clear").addEventListener("click", () => journal.clear());

// ---- colour scheme; remembered where the browser allows

const SCHEMES = {
  auto: ["follows the system", "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18"],
  light: ["light", "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1 1M18 18l1 1M19 5l-1 1M6 18l-1 1"],
  dark: ["dark", "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z"],
};

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`wshd.${key}`, value);
    return localStorage.getItem(`wshd.${key}`);
  } catch {
    return null;
  }
}

function setScheme(scheme) {
  document.documentElement.dataset.scheme = scheme;
  const [name, outline] = SCHEMES[scheme];
  $("theme").title = `Colour scheme: ${name}`;
  $("theme").setAttribute("aria-label", `Colour scheme: ${name}. Change`);
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  icon.setAttribute("viewBox", "0 0 24 24");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", outline);
  icon.append(path);
  $("theme").replaceChildren(icon);
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(SCHEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.scheme) + 1) % names.length];
  setScheme(next);
  remembered("scheme", next);
});

// ---- keyboard

const KEYS = {
  c: toggleConnection, r: () => $("resource").select(), m: () => composer.field.focus(), l: () => journal.focusNewest(),
  "/": () => $("filter").select(), j: () => $("pretty").click(), f: () => $("follow").click(), s: saveJournal,
  x: () => journal.clear(), "?": () => $("help-dialog").showModal(),
};

document.addEventListener("keydown", (event) => {
  const isField = event.target.matches("input:not([type=checkbox]), textarea");
  if (event.key === "Escape" && isField) event.target.blur();
  const isPlain = !event.ctrlKey && !event.metaKey && !event.altKey && !isField && !$("help-dialog").open;
  const action = isPlain && $("single-keys").checked && Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
$("help").addEventListener("click", () => $("help-dialog").showModal());
$("single-keys").addEventListener("change", () => remembered("single-keys", $("single-keys").checked));

// ---- start

// The resource in the fragment of the page's address.
function fromAddress() {
  try {
    return decodeURI(location.hash.slice(1));
  } catch {
    return "";
  }
}

setScheme(Object.hasOwn(SCHEMES, remembered("scheme") ?? "") ? remembered("scheme") : "auto");
$("single-keys").checked = remembered("single-keys") !== "false";
$("version").textContent = `wshd ${facts.version}`;
$("host").textContent = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`;
for (const { path } of facts.resources) {
  $("resource-list").append(make("option", { value: path }));
  $("resources").append(makeChip(path, () => { $("resource").value = path; showResources(); }));
}
const wished = fromAddress();
$("resource").value = wished.startsWith("/") ? wished
  : facts.resources.some(({ path }) => path === "/echo") ? "/echo" : facts.resources[0]?.path ?? "/";
const unfold = () => { $("more").open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();
showConnection();
showJournal();
setInterval(() => { if (connection.canSend) showFigures(); }, 1000);
