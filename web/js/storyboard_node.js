/**
 * A bar on the Storyboard node: what its text says, the first mistake while it is typed, and the storyboard editor.
 *
 * The bar is no value of the node: it is neither saved with the workflow nor sent.
 */

import { app } from "../../../scripts/app.js";
import { add, button } from "./storyboard_card.js";
import { StoryboardEditor } from "./storyboard_editor.js";
import { Film, ask } from "./storyboard_film.js";

const NAME = "longreel_storyboard";
const HEIGHT = 28; // pixels
const MARGIN = 4; // pixels that the classic renderer keeps around it
const WAIT = 300; // milliseconds without typing before the server is asked

class Bar {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.element = document.createElement("div");
    this.element.className = "longreel-board-node";
    this.opener = button(this.element, "Edit shots", "Shots as cards, to write, move and cut", () => this.open(false));
    this.told = add("button", "told", this.element, { type: "button" });
    this.told.setAttribute("aria-live", "polite");
    this.told.addEventListener("click", () => this.open(this.wrong));
    this.wrong = false;
  }

  get widget() {
    return this.node.widgets?.find((widget) => widget.name === "text");
  }

  get linked() {
    return this.node.inputs?.some((input) => input.name === "text" && input.link != null);
  }

  /** Read the text again after a while. */
  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.read(), WAIT);
  }

  async read() {
    const text = String(this.widget?.value ?? "");
    this.opener.disabled = this.told.disabled = this.linked;
    if (this.linked) return this.tell("The text comes from another node.", false);
    const answer = await ask("cards", { text }).catch(() => null);
    if (!answer || text !== String(this.widget?.value ?? "")) return;
    const faults = answer.cards.flatMap((card) => card.faults);
    const lines = faults.map((fault) => `Line ${fault.line}: ${fault.message}`);
    const active = answer.cards.filter((card) => !card.skipped);
    const seconds = Math.round(1000 * active.reduce((sum, card) => sum + card.seconds, 0)) / 1000;
    const more = lines.length > 1 ? ` (and ${lines.length - 1} more)` : "";
    if (lines.length) this.tell(lines[0] + more, true, lines.join("\n"));
    else this.tell(`${active.length} ${active.length === 1 ? "shot" : "shots"}, ${seconds} s`, false);
  }

  tell(text, wrong, all = text) {
    this.wrong = wrong;
    this.told.textContent = text;
    this.told.title = all;
    this.told.classList.toggle("wrong", wrong);
  }

  open(asText) {
    const film = new Film(this.node, () => editor.showStatus());
    const editor = new StoryboardEditor({
      title: this.node.title,
      text: String(this.widget.value),
      film,
      write: (text) => this.write(text),
    });
    editor.element.addEventListener("close", () => {
      film.stop();
      editor.element.remove();
      this.opener.focus();
    });
    editor.open(asText);
  }

  write(text) {
    this.widget.value = text;
    this.widget.callback?.(text);
    this.node.graph?.change?.();
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  }
}

app.registerExtension({
  name: "longreel.storyboard",
  setup() {
    const style = add("link", "style", document.head, { rel: "stylesheet" });
    style.setAttribute("href", new URL("./storyboard.css", import.meta.url).href);
  },
  nodeCreated(node) {
    if (node.comfyClass !== "LongreelStoryboard") return;
    const bar = new Bar(node);
    const widget = node.addDOMWidget(NAME, NAME, bar.element, {
      serialize: false,
      hideOnZoom: false,
      margin: MARGIN,
      getValue: () => "",
      setValue: () => {},
    });
    widget.serialize = false;
    // As high as a button and no higher, in either renderer: the text has the rest of the node.
    widget.computeLayoutSize = undefined;
    widget.computeSize = (width) => [width, HEIGHT + 2 * MARGIN];
    const text = bar.widget;
    const typed = text.callback;
    text.callback = function () {
      typed?.apply(this, arguments);
      bar.later();
    };
    for (const event of ["onConfigure", "onConnectionsChange"]) {
      const before = node[event];
      node[event] = function () {
        before?.apply(this, arguments);
        bar.later();
      };
    }
    bar.later();
  },
});
