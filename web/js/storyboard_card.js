/** One card of the storyboard editor. It shows what the server read, and tells the editor what a person wants changed. */

/** @param {string} kind @param {string} name class @param {HTMLElement} parent @param {any} [properties] */
export function add(kind, name, parent, properties = {}) {
  const element = document.createElement(kind);
  element.className = `longreel-board-${name}`;
  Object.assign(element, properties);
  parent.append(element);
  return element;
}

/** A button with a word on it. @param {HTMLElement} parent @param {string} word @param {string} tooltip */
export function button(parent, word, tooltip, action) {
  const element = add("button", word.toLowerCase().replace(/ /g, "-"), parent, { type: "button", title: tooltip });
  element.textContent = word;
  element.addEventListener("click", action);
  return element;
}

const FIELDS = [
  ["seconds", "Seconds", "Length: 5, 2.5, 0:05. More: a longer shot."],
  ["seed", "Seed", "Another seed: another take. Empty: how many shots stand before it."],
  ["references", "References", "Names of pictures, separated by semicolons."],
  ["take", "Take", "A finished take that the film uses, by its digits. Empty: the one that fits."],
];

export class CardView {
  /** @param {any} editor the StoryboardEditor that holds the card */
  constructor(editor) {
    this.editor = editor;
    this.card = null;
    this.element = document.createElement("li");
    this.element.className = "longreel-board-card";
    const side = add("div", "side", this.element);
    this.grip = button(side, "Move", "Drag, or move with the arrow keys", () => {});
    this.number = add("b", "number", side);
    this.picture = add("div", "picture", side);
    this.status = add("div", "status", side);
    const main = add("div", "main", this.element);
    this.fields = add("div", "fields", main);
    /** @type {Record<string, any>} */
    this.inputs = {};
    for (const [name, label, tooltip] of FIELDS) {
      this.field(name, label, tooltip, add("input", "input", this.label(name, label), { type: "text" }));
      if (name === "seed") this.field("start", "Start", "cut: a new take. continue: the one before goes on.", this.starts());
    }
    this.words = add("textarea", "words", main, { rows: 3, spellcheck: true });
    this.words.addEventListener("input", () => this.editor.change(this.card, { words: this.words.value }, 400));
    this.words.addEventListener("change", () => this.editor.change(this.card, {}, 0));
    this.faults = add("ul", "faults", main);
    this.faults.setAttribute("role", "alert");
    const bar = add("div", "bar", main);
    this.buttons = [
      button(bar, "Split", "Into two shots, in its middle or where its prompt changes", () => editor.split(this.card)),
      button(bar, "Duplicate", "The same shot once more behind it", () => editor.duplicate(this.card)),
      button(bar, "Skip", "Leave it out of the film and keep it in the text as a comment", () => editor.skip(this.card)),
      button(bar, "Delete", "Remove it from the text", () => editor.remove(this.card)),
    ];
    this.grip.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      this.editor.move(this.card, this.editor.cards.indexOf(this.card) + by);
      this.grip.focus();
    });
    this.grip.addEventListener("pointerdown", (event) => this.editor.drag(event, this));
  }

  label(name, text) {
    const label = add("label", `field-${name}`, this.fields);
    add("span", "name", label).textContent = text;
    return label;
  }

  starts() {
    const select = add("select", "input", this.label("start", "Start"));
    for (const start of this.editor.starts) add("option", "option", select, { value: start, textContent: start });
    return select;
  }

  field(name, label, tooltip, input) {
    input.title = tooltip;
    this.inputs[name] = input;
    input.addEventListener("change", () => {
      const plain = name === "start" && input.value === this.editor.starts[0];
      this.editor.change(this.card, { settings: { [name]: plain ? "" : input.value.trim() } }, 0);
    });
  }

  /** Show a card; a field that is being written in is left alone. */
  update(card, { number, place, count, status, keepFocused }) {
    this.card = card;
    const all = JSON.stringify([card, number, place, count, status]);
    if (all === this.shown) return;
    const name = card.skipped ? `Skipped shot, place ${place + 1}` : `Shot ${number}`;
    const opening = card.words.trim().split("\n")[0];
    this.element.setAttribute("aria-label", `${name} of ${count}: ${opening}`);
    this.element.classList.toggle("skipped", card.skipped);
    this.element.classList.toggle("faulty", card.faults.length > 0);
    this.element.dataset.number = card.skipped ? "" : `${number}`;
    this.number.textContent = card.skipped ? "-" : `${number}`;
    this.grip.setAttribute("aria-label", `Move ${name.toLowerCase()}: drag, or arrow keys`);
    this.set(this.words, card.edit?.words ?? card.words, keepFocused);
    this.words.setAttribute("aria-label", `${name}: what is seen`);
    this.words.rows = Math.min(Math.max(card.words.split("\n").length, 2), 8);
    for (const [key, input] of Object.entries(this.inputs)) {
      const given = card.edit?.settings?.[key] ?? card.settings[key] ?? "";
      this.set(input, key === "start" ? given.toLowerCase() || this.editor.starts[0] : given, keepFocused);
      input.setAttribute("aria-label", `${name}: ${key}`);
    }
    this.inputs.seconds.placeholder = `${card.seconds}`;
    this.inputs.seed.placeholder = card.seed;
    this.buttons[0].disabled = !card.readable || card.skipped;
    this.buttons[2].textContent = card.skipped ? "Restore" : "Skip";
    for (const each of this.buttons) each.setAttribute("aria-label", `${each.textContent} ${name.toLowerCase()}`);
    this.say(this.status, card.skipped ? { kind: "skipped", text: "skipped" } : status);
    const texts = card.faults.map((fault) => `Line ${fault.line}: ${fault.message}`);
    if (texts.join() !== [...this.faults.children].map((each) => each.textContent).join()) {
      this.faults.replaceChildren();
      for (const text of texts) add("li", "fault", this.faults).textContent = text;
    }
    this.shown = all;
  }

  /** Show what is said of the shot. */
  say(element, { kind, text, picture }) {
    this.shown = "";
    if (element.textContent !== text) element.textContent = text;
    element.dataset.kind = kind;
    const shown = this.picture.firstChild;
    if (!picture) shown?.remove();
    else if (shown?.getAttribute("src") !== picture) {
      this.picture.replaceChildren();
      add("img", "poster", this.picture, { src: picture, loading: "lazy", alt: "" });
    }
  }

  set(input, value, keepFocused) {
    if (input.value !== value && !(keepFocused && input === document.activeElement)) input.value = value;
  }
}
