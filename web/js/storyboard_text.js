/** The storyboard as plain text, each mistake at its line. */

import { add } from "./storyboard_card.js";

export class TextView {
  /** @param {(text: string) => void} typed called for every change */
  constructor(typed) {
    this.element = document.createElement("div");
    this.element.className = "longreel-board-plain";
    const room = add("div", "text-room", this.element);
    this.numbers = add("pre", "lines", room);
    this.numbers.setAttribute("aria-hidden", "true");
    this.area = add("textarea", "raw", room, { wrap: "off", spellcheck: false });
    this.area.setAttribute("aria-label", "Storyboard as text");
    this.area.addEventListener("input", () => typed(this.area.value));
    this.area.addEventListener("scroll", () => (this.numbers.scrollTop = this.area.scrollTop));
    this.faults = add("ul", "text-faults", this.element);
    this.faults.setAttribute("role", "alert");
  }

  /** @param {string} text @param {any[]} cards with their faults */
  show(text, cards) {
    if (this.area.value !== text) this.area.value = text;
    const faults = cards.flatMap((card) => card.faults);
    const wrong = new Set(faults.map((fault) => fault.line));
    this.numbers.replaceChildren();
    text.split("\n").forEach((_, index) => {
      const line = add("span", wrong.has(index + 1) ? "line-wrong" : "line", this.numbers);
      line.textContent = `${index + 1}\n`;
    });
    this.numbers.scrollTop = this.area.scrollTop;
    this.faults.replaceChildren();
    for (const { line, column, message } of faults) {
      const fault = add("button", "fault", add("li", "fault-item", this.faults), { type: "button" });
      fault.textContent = `Line ${line}: ${message}`;
      fault.addEventListener("click", () => this.go(line, column));
    }
  }

  /** Put the cursor where a mistake is, with the rest of its line chosen. */
  go(line, column) {
    const lines = this.area.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
    this.area.focus();
    this.area.setSelectionRange(start + column - 1, start + (lines[line - 1] ?? "").length);
  }
}
