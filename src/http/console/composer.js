
// composer: the message to send: text, bytes in hexadecimal, or a file.

const MOST_HISTORY = 50;
const MOST_FILE = 64 * 1024 * 1024;

class Composer {
  constructor(elements, send) {
    this.elements = elements;
    this.mode = "text";
    this.file = null;
    this.history = [];
    this.at = 0; // position in the history; its length: a new message
    const { form, text, hex, file } = elements;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit(send);
    });
    for (const field of [text, hex]) {
      field.addEventListener("input", () => this.check());
      field.addEventListener("keydown", (event) => this.#key(event));
    }
    file.addEventListener("change", () => this.setFile(file.files[0]));
    form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("drop"); });
    form.addEventListener("dragleave", () => form.classList.remove("drop"));
    form.addEventListener("drop", (event) => {
      event.preventDefault();
      form.classList.remove("drop");
      if (event.dataTransfer.files.length) this.setFile(event.dataTransfer.files[0]);
    });
    for (const button of elements.modes) button.addEventListener("click", () => this.setMode(button.dataset.mode));
    this.check();
  }

  get field() {
    return this.elements[this.mode];
  }

  setMode(mode) {
    this.mode = mode;
    const { modes, text, hex, fileLabel } = this.elements;
    for (const button of modes) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    text.hidden = mode !== "text";
    hex.hidden = mode !== "hex";
    fileLabel.hidden = mode !== "file";
    this.at = this.history.length;
    this.check();
    this.field.focus();
  }

  setFile(file) {
    this.file = file ?? null;
    this.elements.fileName.textContent = file ? `${file.name}, ${byteLabel(file.size)}` : "Choose a file, or drop one here";
    this.elements.fileLabel.classList.toggle("ready", Boolean(file));
    this.setMode("file");
  }

  // Puts a message of the journal into the fields.
  reuse(entry) {
    if (entry.kind === "text") this.elements.text.value = entry.data;
    else this.elements.hex.value = Array.from(entry.data, hex).join(" ");
    this.setMode(entry.kind === "text" ? "text" : "hex");
  }

  setReady(ready) {
    this.ready = ready;
    this.check();
  }

  // Shows the size of the message, or what is wrong.
  check() {
    const { note, send } = this.elements;
    let fault = "";
    let size = 0;
    try {
      if (this.mode === "text") size = utf8.encode(this.elements.text.value).length;
      if (this.mode === "hex") size = parseHex(this.elements.hex.value).length;
      if (this.mode === "file") size = this.file?.size ?? 0;
      if (size > MOST_FILE) fault = `${byteLabel(size)} is too much for this page: at most ${byteLabel(MOST_FILE)}`;
    } catch (error) {
      fault = error.message;
    }
    if (this.mode === "hex") this.field.setAttribute("aria-invalid", String(Boolean(fault)));
    note.classList.toggle("bad", Boolean(fault));
    note.textContent = fault || `${this.mode === "text" ? "text" : "binary"}, ${countLabel(size)} ${size === 1 ? "byte" : "bytes"}`;
    send.disabled = Boolean(fault) || !this.ready || (this.mode === "file" && !this.file);
    return !send.disabled;
  }

  async #submit(send) {
    if (!this.check()) return;
    if (this.mode === "file") {
      try {
        send(new Uint8Array(await this.file.arrayBuffer()));
      } catch {
        this.elements.note.textContent = "The file cannot be read.";
      }
      return;
    }
    const { value } = this.field;
    send(this.mode === "text" ? value : parseHex(value));
    if (this.history.at(-1)?.value !== value) this.history.push({ mode: this.mode, value });
    if (this.history.length > MOST_HISTORY) this.history.shift();
    this.at = this.history.length;
    this.field.value = "";
    this.check();
  }

  #key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.elements.form.requestSubmit();
      return;
    }
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const isRecalled = this.field.value === this.history[this.at]?.value;
    if (!step || event.shiftKey || (this.field.value !== "" && !isRecalled)) return;
    const to = this.at + step;
    if (to < 0 || to > this.history.length) return;
    event.preventDefault();
    const item = this.history[to];
    if (item && item.mode !== this.mode) this.setMode(item.mode);
    this.at = to;
    this.field.value = item?.value ?? "";
    this.check();
  }
}
