/** The lengths of a storyboard's shots as a strip: every border is dragged, or moved with the arrow keys. */

import { add } from "./storyboard_card.js";

const STEP = 0.25; // seconds that a border moves by
const LEAST = 0.25;
const NARROWEST = 10; // pixels

const round = (seconds) => Math.round(seconds * 1000) / 1000;

export class Lengths {
  /** @param {any} editor */
  constructor(editor) {
    this.editor = editor;
    this.element = document.createElement("div");
    this.element.className = "longreel-board-lengths";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Lengths of the shots");
  }

  /** @param {any[]} cards those that are not skipped */
  update(cards) {
    while (this.element.children.length > cards.length) this.element.lastChild.remove();
    while (this.element.children.length < cards.length) this.add(this.element.children.length);
    this.cards = cards;
    cards.forEach((card, index) => this.show(index, card.seconds, null));
  }

  add(index) {
    const part = add("div", "length", this.element);
    add("span", "length-name", part);
    const border = add("div", "border", part, { tabIndex: 0 });
    border.setAttribute("role", "slider");
    border.setAttribute("aria-valuemin", `${LEAST}`);
    border.addEventListener("pointerdown", (event) => this.drag(event, index, border));
    border.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -4, PageUp: 4 }[event.key];
      if (!by) return;
      event.preventDefault();
      this.keep(this.moved(index, by * STEP), 400);
    });
  }

  /** @param {number | null} scale pixels for a second while a border is dragged; null: the strip is filled */
  show(index, seconds, scale) {
    const part = this.element.children[index];
    part.style.flex = scale === null ? `${seconds} 1 ${NARROWEST}px` : `0 0 ${seconds * scale}px`;
    part.firstChild.textContent = `${index + 1}`;
    part.title = `Shot ${index + 1}: ${seconds} s`;
    const border = part.lastChild;
    border.setAttribute("aria-label", `Length of shot ${index + 1}`);
    border.setAttribute("aria-valuenow", `${seconds}`);
    border.setAttribute("aria-valuetext", `${seconds} seconds`);
  }

  /** The lengths that change when the border behind a shot moves: with ripple its own, else the next shot gives way. */
  moved(index, by) {
    const [own, next] = [this.cards[index], this.cards[index + 1]];
    if (this.editor.ripple || !next) return new Map([[own, Math.max(round(own.seconds + by), LEAST)]]);
    const least = Math.min(LEAST, own.seconds, next.seconds);
    const shift = Math.min(Math.max(by, least - own.seconds), next.seconds - least);
    return new Map([
      [own, round(own.seconds + shift)],
      [next, round(next.seconds - shift)],
    ]);
  }

  /** @param {Map<any, number>} lengths @param {number} wait milliseconds before the server is asked */
  keep(lengths, wait) {
    for (const [card, seconds] of lengths) {
      card.seconds = seconds;
      this.editor.change(card, { settings: { seconds: `${seconds}` } }, wait);
    }
    this.editor.show();
  }

  drag(down, index, border) {
    if (down.button !== 0) return;
    down.preventDefault();
    border.focus();
    border.setPointerCapture(down.pointerId);
    const total = this.cards.reduce((sum, card) => sum + card.seconds, 0);
    const scale = this.element.clientWidth / total;
    this.cards.forEach((card, i) => this.show(i, card.seconds, scale));
    let lengths = new Map();
    const done = new AbortController();
    const listen = (event, action) => border.addEventListener(event, action, { signal: done.signal });
    listen("pointermove", (move) => {
      const by = Math.round((move.clientX - down.clientX) / scale / STEP) * STEP;
      lengths = this.moved(index, by);
      for (const [card, seconds] of lengths) this.show(this.cards.indexOf(card), seconds, scale);
    });
    listen("pointerup", () => {
      done.abort();
      this.keep(lengths, 0);
    });
    listen("pointercancel", () => {
      done.abort();
      this.update(this.cards);
    });
  }
}
