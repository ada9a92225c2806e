/**
 * The storyboard editor: the shots of a Storyboard node as cards, with the raw text as the second view.
 *
 * The node's text is the only state. The server makes cards of it and text of changed cards (host/storyboard_routes.py);
 * there is no grammar here.
 */

import { CardView, add, button } from "./storyboard_card.js";
import { ask } from "./storyboard_film.js";
import { Lengths } from "./storyboard_lengths.js";
import { TextView } from "./storyboard_text.js";

const EDGE = 40; // pixels: a card dragged so near to an edge scrolls the list

/** A name of a card's view. */
const key = () => `${Math.random()}`;

export class StoryboardEditor {
  /**
   * @param {{title: string, text: string, film: any, write: (text: string) => void}} given
   *   write: puts a text into the node's widget
   */
  constructor({ title, text, film, write }) {
    Object.assign(this, { film, write, text });
    /** @type {any[]} as the server gives them; `edit` holds what was changed since, `key` names the view */
    this.cards = [];
    /** @type {Map<string, CardView>} */
    this.views = new Map();
    this.history = [];
    this.ripple = true;
    this.element = document.createElement("dialog");
    this.element.className = "longreel-board";
    this.element.setAttribute("aria-label", `Storyboard: ${title}`);
    const top = add("header", "top", this.element);
    add("h2", "title", top).textContent = title;
    this.total = add("span", "total", top);
    this.project = add("span", "project", top);
    this.toText = button(top, "Text", "The same as plain text", () => this.turn(this.body.hidden));
    this.toText.setAttribute("aria-pressed", "false");
    this.undoing = button(top, "Undo", "Take back the last change", () => this.undo());
    button(top, "Close", "Back to the graph (Escape)", () => this.element.close());
    this.body = add("div", "body", this.element);
    const strip = add("div", "strip", this.body);
    this.lengths = new Lengths(this);
    strip.append(this.lengths.element);
    const label = add("label", "ripple", strip, { title: "On: the shots behind move along. Off: the next shot gives way." });
    const ripple = add("input", "ripple-box", label, { type: "checkbox", checked: true });
    ripple.addEventListener("change", () => (this.ripple = ripple.checked));
    label.append(" Ripple");
    this.list = add("ol", "cards", this.body);
    button(this.body, "Add shot", "A new shot behind the last", () => this.insert(this.cards.length, { text: "", words: "" }));
    this.raw = new TextView((typed) => this.type(typed));
    this.element.append(this.raw.element);
    this.raw.element.hidden = true;
    this.message = add("p", "message", this.element);
    this.message.setAttribute("role", "status");
    // The graph behind must not take keys and clipboard for its own.
    for (const name of ["keydown", "keyup", "copy", "cut", "paste", "wheel"]) {
      this.element.addEventListener(name, (event) => event.stopPropagation());
    }
    this.element.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      if (event.target.matches("input, textarea")) return; // the field's own
      event.preventDefault();
      this.undo();
    });
  }

  /** @param {boolean} asText */
  open(asText) {
    document.body.append(this.element);
    this.element.showModal();
    this.turn(!asText);
    this.later(0, async () => this.take(await ask("cards", { text: this.text }), false));
  }

  /** @param {boolean} toCards */
  turn(toCards) {
    this.body.hidden = !toCards;
    this.raw.element.hidden = toCards;
    this.toText.setAttribute("aria-pressed", `${!toCards}`);
    if (toCards) this.show();
    else this.raw.show(this.text, this.cards);
  }

  // What a person changes

  /** Change what a card says. @param {any} card @param {any} edit see CardEdit @param {number} wait milliseconds */
  change(card, edit, wait) {
    if (!this.cards.includes(card)) return;
    const settings = { ...card.edit?.settings, ...edit.settings };
    if (edit.words !== undefined || edit.settings || edit.split !== undefined) card.edit = { ...card.edit, ...edit, settings };
    if (card.edit) this.commit(wait);
  }

  move(card, to) {
    const from = this.cards.indexOf(card);
    if (from < 0 || to < 0 || to >= this.cards.length || to === from) return;
    this.cards.splice(to, 0, ...this.cards.splice(from, 1));
    this.changed(`Moved to place ${to + 1} of ${this.cards.length}.`);
  }

  /** @param {any} card */
  split(card) {
    const at = card.changes[Math.floor(card.changes.length / 2)] ?? card.seconds / 2;
    this.change(card, { split: at }, 0);
  }

  duplicate(card) {
    const copy = { ...card, key: key(), edit: { ...card.edit, settings: { ...card.edit?.settings, take: "" } } };
    this.cards.splice(this.cards.indexOf(card) + 1, 0, copy);
    this.changed("Duplicated.");
  }

  skip(card) {
    card.skipped = !card.skipped;
    this.changed(card.skipped ? "Skipped." : "Restored.");
  }

  remove(card) {
    const place = this.cards.indexOf(card);
    this.cards.splice(place, 1);
    this.changed("Deleted; Undo brings it back.");
    const next = this.cards[Math.min(place, this.cards.length - 1)];
    (next ? this.views.get(next.key).grip : this.toText).focus();
  }

  insert(place, { text, words }) {
    const blank = { text, words, settings: {}, seed: "", seconds: 5, skipped: false, readable: false, faults: [] };
    const card = { ...blank, key: key(), edit: { words } };
    this.cards.splice(place, 0, card);
    this.changed("Added.");
    this.views.get(card.key).words.focus();
  }

  changed(told) {
    this.say(told);
    this.show();
    this.commit(0);
  }

  /** Text typed in the second view. @param {string} text */
  type(text) {
    this.remember();
    this.text = text;
    this.write(text);
    this.later(300, async () => {
      const answer = await ask("cards", { text });
      if (text === this.text) this.take(answer, false);
    });
  }

  undo() {
    const text = this.history.pop();
    if (text === undefined) return;
    this.text = text;
    this.write(text);
    this.later(0, async () => this.take(await ask("cards", { text }), false));
  }

  remember() {
    if (this.history.at(-1) !== this.text) this.history.push(this.text);
    if (this.history.length > 200) this.history.shift();
  }

  // The server

  later(wait, action) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => action().catch((error) => this.say(error.message)), wait);
  }

  /** Send the cards, after a while without further changes; one request at a time. @param {number} wait */
  commit(wait) {
    this.dirty = true;
    this.later(wait, () => this.send());
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    try {
      while (this.dirty) {
        this.dirty = false;
        const cards = this.cards.map(({ text, seed, skipped, edit }) => ({ text, seed, skipped, ...edit }));
        const answer = await ask("text", { cards });
        if (!this.dirty) this.take(answer, true);
      }
    } catch (error) {
      for (const card of this.cards) delete card.edit?.split;
      this.say(error.message);
    } finally {
      this.sending = false;
    }
  }

  /** Show what the server answered. @param {any} answer @param {boolean} written whether it holds a new text */
  take(answer, written) {
    this.name(answer.cards);
    this.starts = answer.starts;
    this.cards = answer.cards;
    if (written && answer.text !== this.text) {
      this.remember();
      this.text = answer.text;
      this.write(answer.text);
    }
    this.show();
    this.film.refresh(this.text);
  }

  /** Give each card the view that showed it: cards are compared from both ends. @param {any[]} cards */
  name(cards) {
    const old = this.cards;
    if (old.length === cards.length) cards.forEach((card, i) => (card.key = old[i].key));
    for (let i = 0; i < Math.min(old.length, cards.length) && (i === 0 || cards[i - 1].text === old[i - 1].text); i++) {
      cards[i].key ??= old[i].key;
    }
    const taken = new Set(cards.map((card) => card.key));
    for (let i = 1; i <= Math.min(old.length, cards.length); i++) {
      const [from, to] = [old[old.length - i], cards[cards.length - i]];
      if (from.words !== to.words || to.key || taken.has(from.key)) break;
      to.key = from.key;
    }
    for (const card of cards) card.key ??= key();
  }

  // What is seen

  say(text) {
    this.message.textContent = text;
  }

  /** Show cards and strip as they are now. */
  show() {
    const active = this.cards.filter((card) => !card.skipped);
    const seconds = Math.round(1000 * active.reduce((sum, card) => sum + card.seconds, 0)) / 1000;
    const faults = this.cards.reduce((sum, card) => sum + card.faults.length, 0);
    const wrong = faults ? `, ${faults} ${faults === 1 ? "mistake" : "mistakes"}` : "";
    this.total.textContent = `${active.length} ${active.length === 1 ? "shot" : "shots"}, ${seconds} s${wrong}`;
    this.project.textContent = this.film.note;
    this.undoing.disabled = !this.history.length;
    if (!this.raw.element.hidden) this.raw.show(this.text, this.cards);
    if (this.body.hidden) return;
    this.lengths.update(active);
    const focused = document.activeElement;
    const kept = new Set(this.cards.map((card) => card.key));
    for (const [name, view] of this.views) {
      if (kept.has(name)) continue;
      view.element.remove();
      this.views.delete(name);
    }
    let number = 0;
    this.cards.forEach((card, place) => {
      if (!this.views.has(card.key)) this.views.set(card.key, new CardView(this));
      const view = this.views.get(card.key);
      if (!card.skipped) number += 1;
      const status = card.faults.length ? { kind: "faulty", text: "has mistakes" } : this.film.status(number);
      view.update(card, { number, place, count: active.length, status, keepFocused: true });
      if (this.list.children[place] !== view.element) this.list.insertBefore(view.element, this.list.children[place] ?? null);
    });
    if (focused !== document.activeElement && this.list.contains(focused)) focused.focus(); // it was moved
  }

  /** Show statuses alone. */
  showStatus() {
    this.project.textContent = this.film.note;
    let number = 0;
    for (const card of this.cards) {
      if (card.skipped || !this.views.has(card.key)) continue;
      number += 1;
      const view = this.views.get(card.key);
      if (!card.faults.length) view.say(view.status, this.film.status(number));
    }
  }

  /** Drag a card by its handle: the others stay, and a line shows where it will stand. */
  drag(down, view) {
    if (down.button !== 0) return;
    const { element, grip } = view;
    grip.setPointerCapture(down.pointerId);
    const middles = [...this.list.children].map((each) => each.offsetTop + each.offsetHeight / 2);
    const from = [...this.list.children].indexOf(element);
    const room = this.list.getBoundingClientRect();
    const scrolled = this.list.scrollTop;
    let to = from;
    const done = new AbortController();
    const listen = (event, action) => grip.addEventListener(event, action, { signal: done.signal });
    const mark = (place) => {
      const at = place > from ? place : place - 1;
      for (const each of this.list.querySelectorAll(".drop")) each.classList.remove("drop", "first");
      if (place !== from) this.list.children[Math.max(at, 0)].classList.add("drop", ...(at < 0 ? ["first"] : []));
    };
    element.classList.add("dragged");
    listen("pointermove", (move) => {
      if (move.clientY < room.top + EDGE) this.list.scrollTop -= EDGE / 2;
      if (move.clientY > room.bottom - EDGE) this.list.scrollTop += EDGE / 2;
      element.style.translate = `0 ${move.clientY - down.clientY + this.list.scrollTop - scrolled}px`;
      const y = move.clientY - room.top + this.list.scrollTop;
      const place = middles.filter((middle, i) => i !== from && middle < y).length;
      if (place !== to) mark((to = place));
    });
    const end = (moved) => {
      done.abort();
      element.style.translate = "";
      element.classList.remove("dragged");
      mark(from);
      if (moved) this.move(view.card, to);
    };
    listen("pointerup", () => end(true));
    listen("pointercancel", () => end(false));
  }
}
