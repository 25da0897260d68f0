
// connection: one WebSocket at a time, its counters, and the reason for its end.

const MOST_PENDING = 64; // sent messages that may still be echoed
const MOST_TIMES = 120; // round-trip times that are kept
const LONGEST_PAUSE = 30_000;

// RFC 6455 7.4.1 and the IANA registry.
const CODES = {
  1000: "normal", 1001: "going away", 1002: "protocol error", 1003: "unsupported data", 1005: "no code",
  1006: "no Close frame", 1007: "invalid data", 1008: "policy violation", 1009: "message too big",
  1010: "extension missing", 1011: "internal error", 1012: "service restart", 1013: "try again later",
  1014: "bad gateway", 1015: "TLS handshake failed",
};

class Connection {
  constructor(journal, onChange) {
    this.journal = journal;
    this.onChange = onChange;
    this.state = "closed"; // connecting, open, closing, closed, failed, waiting (to reconnect)
    this.auto = false;
    this.attempts = 0;
    this.#reset();
  }

  // resource: path and query; protocols: a list of names; known: those that its handler has.
  connect(resource, protocols, known) {
    this.#leave();
    clearTimeout(this.timer);
    this.#reset();
    this.resource = resource;
    this.protocols = protocols;
    this.known = known;
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${resource}`;
    let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch (error) {
      this.#become("failed");
      this.journal.event(`Cannot connect to ${resource}`, "bad", error.message);
      return;
    }
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.asked = false;
    const started = performance.now();
    const current = (handler) => (event) => { if (this.socket === socket) handler(event); };
    socket.onopen = current(() => this.#opened(performance.now() - started));
    socket.onmessage = current((event) => this.#received(event.data));
    socket.onclose = current((event) => this.#closed(event));
    this.#become("connecting");
  }

  get canSend() {
    return this.state === "open";
  }

  // data: a string or a Uint8Array.
  send(data) {
    const size = typeof data === "string" ? utf8.encode(data).length : data.length;
    this.pending.push({ data, at: performance.now() });
    if (this.pending.length > MOST_PENDING) this.pending.shift();
    this.socket.send(data);
    this.sent.count += 1;
    this.sent.bytes += size;
    this.journal.message("sent", data, size);
  }

  // Begins the closing handshake; without a code the Close frame is empty.
  close(code, reason) {
    this.attempts = 0;
    clearTimeout(this.timer);
    if (this.state === "waiting") return this.#become("closed");
    if (!this.isBusy) return;
    this.asked = true;
    if (code === undefined) this.socket.close();
    else this.socket.close(code, reason);
    this.#become("closing");
  }

  get isBusy() {
    return this.state === "connecting" || this.state === "open";
  }

  // Abandons the present socket without waiting for its end.
  #leave() {
    if (this.openedAt !== undefined && this.closedAt === undefined) this.journal.event(`Left ${this.resource}`);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  #reset() {
    this.sent = { count: 0, bytes: 0 };
    this.received = { count: 0, bytes: 0 };
    this.pending = [];
    this.times = [];
    this.openedAt = undefined;
    this.closedAt = undefined;
  }

  #become(state) {
    this.state = state;
    this.onChange();
  }

  #opened(took) {
    this.attempts = 0;
    this.openedAt = performance.now();
    const { protocol, extensions } = this.socket;
    const agreed = [protocol && `subprotocol ${protocol}`, extensions].filter(Boolean).join(", ");
    this.journal.event(`Connected to ${this.resource} in ${latencyLabel(took)}${agreed && ` · ${agreed}`}`, "good");
    this.#become("open");
  }

  #received(payload) {
    const now = performance.now();
    const data = typeof payload === "string" ? payload : new Uint8Array(payload);
    const size = typeof data === "string" ? utf8.encode(data).length : data.length;
    const rtt = this.#roundTrip(data, now);
    this.received.count += 1;
    this.received.bytes += size;
    this.journal.message("received", data, size, rtt);
  }

  // A received message is the echo of the oldest equal one that was sent.
  #roundTrip(data, now) {
    const at = this.pending.findIndex((sent) => sameData(sent.data, data));
    if (at < 0) return undefined;
    const rtt = now - this.pending[at].at;
    this.pending.splice(0, at + 1);
    this.times.push(rtt);
    if (this.times.length > MOST_TIMES) this.times.shift();
    return rtt;
  }

  #closed({ code, reason, wasClean }) {
    this.closedAt = performance.now();
    this.pending = [];
    const wasOpen = this.openedAt !== undefined;
    if (!wasOpen && !this.asked) {
      this.journal.event(`The opening handshake for ${this.resource} failed`, "bad");
      this.#become("failed");
      explainFailure(this.resource, this.known).then((text) => this.journal.event(text, "why"));
    } else {
      const who = this.asked ? "Closed by this page" : wasClean ? "Closed by the server" : "Connection lost";
      const meaning = CODES[code] ? ` (${CODES[code]})` : "";
      this.journal.event(`${who}: ${code}${meaning}${reason && ` “${reason}”`}`, wasClean ? "good" : "bad");
      this.#become("closed");
    }
    if (this.auto && !this.asked) this.#reconnectLater();
  }

  #reconnectLater() {
    const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** this.attempts);
    this.attempts += 1;
    this.retryAt = performance.now() + pause;
    this.timer = setTimeout(() => this.connect(this.resource, this.protocols, this.known), pause);
    this.#become("waiting");
  }
}

function sameData(one, other) {
  if (typeof one === "string" || typeof other === "string") return one === other;
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}

// A browser does not reveal the response to a failed handshake; that to a plain request tells more.
async function explainFailure(resource, known) {
  let reply;
  try {
    reply = await fetch(resource, { cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(5000) });
  } catch {
    return "The server does not answer a plain request either: it is not running, or cannot be reached.";
  }
  if (reply.status === 426) {
    const names = known.length ? ` (its own are ${known.join(", ")})` : "";
    return `There is a handler at ${resource}, and it refused this handshake or dropped the connection. It may want `
      + `another Origin (this page’s is ${location.origin}), a cookie, or other subprotocols${names}. The status is in the `
      + "browser’s developer tools under Network; the server’s log may say why.";
  }
  if (reply.status === 404) return `There is no handler at ${resource}: the server answers 404 to a plain request.`;
  if (reply.ok) return `${resource} is not a WebSocket resource: the server answers a plain request with a file.`;
  return `The server answers a plain request with ${reply.status} ${reply.statusText}.`;
}
