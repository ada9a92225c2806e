/**
 * The canvas of First Frame Composer: references as small pictures to drag, resize, reorder and snap to slots.
 *
 * The widget's value is the text that film/first_frame/arrangement.py reads. It is the only state: what is shown beside
 * it (pictures, slots, warnings) comes from the node's last run and is gone with it. Python alone decides the pixels.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { format, nearest, parse, resized, snapped } from "./cast_arrangement.js";

const STYLE = `
.longreel-cast { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; font: 11px sans-serif; }
.longreel-cast-room { flex: 1; min-height: 0; container-type: size; }
.longreel-cast-room { display: flex; align-items: center; justify-content: center; }
.longreel-cast-stage { position: relative; background: white; overflow: hidden; touch-action: none; }
.longreel-cast-stage > * { position: absolute; box-sizing: border-box; }
.longreel-cast-slot { border: 1px dashed #bbb; pointer-events: none; }
.longreel-cast-stage img { width: 100%; height: 100%; object-fit: contain; pointer-events: none; display: block; }
.longreel-cast-item { cursor: move; border: 1px solid transparent; outline: none; }
.longreel-cast-item:hover, .longreel-cast-item.chosen { border-color: #1f6fb2; }
.longreel-cast-item > b { position: absolute; left: 0; top: 0; padding: 0 3px; background: #1f6fb2; color: white; }
.longreel-cast-grip { position: absolute; right: 0; bottom: 0; width: 12px; height: 12px; background: #1f6fb2; }
.longreel-cast-grip { cursor: nwse-resize; }
.longreel-cast-hint { inset: 0; display: grid; place-items: center; color: #777; text-align: center; }
.longreel-cast-bar { display: flex; gap: 4px; align-items: center; }
.longreel-cast-bar button { font: inherit; cursor: pointer; }
.longreel-cast-warnings { max-height: 48px; overflow-y: auto; color: #c60; }
`;
const SNAP_REACH = 8; // pixels of the screen
const HINT = "Connect references and run once: they appear here and can be dragged.";

/** @param {string} kind @param {string} name @param {HTMLElement} parent */
function add(kind, name, parent) {
  const element = document.createElement(kind);
  element.className = `longreel-cast-${name}`;
  parent.append(element);
  return element;
}

class CastCanvas {
  /** @param {any} node the composer */
  constructor(node) {
    this.node = node;
    this.text = "";
    this.chosen = 0;
    /** @type {Map<number, HTMLElement>} what is on the stage, by number of the reference, in the order of drawing */
    this.items = new Map();
    /** @type {any} what the last run showed, see nodes/first_frame_canvas.py */
    this.shown = null;
    this.element = document.createElement("div");
    this.element.className = "longreel-cast";
    add("style", "style", this.element).textContent = STYLE;
    this.stage = add("div", "stage", add("div", "room", this.element));
    const bar = add("div", "bar", this.element);
    this.button(bar, "Earlier", "Lay out and draw the chosen reference one place earlier", () => this.reorder(-1));
    this.button(bar, "Later", "Lay out and draw the chosen reference one place later", () => this.reorder(1));
    this.button(bar, "Reset", "Forget what was arranged by hand", () => this.reset());
    this.label = add("span", "label", bar);
    this.warnings = add("div", "warnings", this.element);
  }

  button(bar, title, tooltip, action) {
    const button = add("button", title.toLowerCase(), bar);
    button.textContent = title;
    button.title = tooltip;
    button.addEventListener("click", action);
  }

  // What is arranged

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  get size() {
    return { width: this.widget("width")?.value ?? 1280, height: this.widget("height")?.value ?? 720 };
  }

  get manual() {
    return this.widget("layout")?.value === "manual";
  }

  /** Every connected reference whose place is known, in the order in which it is drawn. @returns {Map<number, any>} */
  places() {
    const connected = (this.node.inputs ?? [])
      .filter((input) => input.link != null && input.name.startsWith("references."))
      .map((input) => Number(input.name.split("_").pop()));
    const typed = parse(this.text, this.size);
    const ran = new Map((this.shown?.references ?? []).map((each) => [each.number, this.onCanvas(each.box)]));
    const order = [...new Set([...typed.keys(), ...ran.keys()])].filter((number) => connected.includes(number));
    const places = new Map();
    for (const number of order) {
      const box = (this.manual && typed.get(number)) || ran.get(number) || typed.get(number);
      if (box) places.set(number, box);
    }
    return places;
  }

  /** A box of the last run, on the canvas as it is now. */
  onCanvas([x, y, width, height]) {
    const across = this.size.width / this.shown.width;
    const down = this.size.height / this.shown.height;
    return { x: x * across, y: y * down, width: width * across, height: height * down };
  }

  slots() {
    return (this.shown?.slots ?? []).map((slot) => this.onCanvas(slot));
  }

  /** Keep these boxes: from now on the layout is the one arranged by hand. @param {Map<number, any>} places */
  keep(places) {
    this.set("layout", "manual");
    this.change(format(places, this.size));
  }

  /** @param {number} by places later, or earlier if negative */
  reorder(by) {
    const places = this.places();
    const order = [...places.keys()];
    const from = order.indexOf(this.chosen);
    const to = from + by;
    if (from < 0 || to < 0 || to >= order.length) return;
    [order[from], order[to]] = [order[to], order[from]];
    this.change(format(new Map(order.map((number) => [number, this.manual ? places.get(number) : null])), this.size));
  }

  /** Give a reference the whole of the nearest slot. @param {number} number */
  fillSlot(number) {
    const places = this.places();
    const slot = nearest(places.get(number), this.slots());
    if (slot) this.keep(places.set(number, slot));
  }

  reset() {
    if (this.manual) this.set("layout", "auto");
    this.change("");
  }

  set(name, value) {
    const widget = this.widget(name);
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value);
  }

  change(text) {
    this.text = text;
    this.node.graph?.change?.();
    this.update();
  }

  // What is seen

  /** After a change: what is on the stage stays if only places changed, so that the pointer keeps what it holds. */
  update() {
    if ([...this.places().keys()].join() === [...this.items.keys()].join()) this.arrange();
    else this.draw();
  }

  /** Show everything anew. */
  draw() {
    this.stage.replaceChildren();
    this.items.clear();
    const plate = this.shown?.plate;
    if (plate) {
      const frame = add("div", "plate", this.stage);
      this.place(frame, this.onCanvas(plate.box));
      add("img", "picture", frame).src = this.address(plate.thumbnail);
    }
    for (const slot of this.slots()) this.place(add("div", "slot", this.stage), slot);
    const places = this.places();
    for (const number of places.keys()) this.items.set(number, this.makeItem(number));
    if (!places.size) add("div", "hint", this.stage).textContent = HINT;
    this.warnings.replaceChildren();
    for (const warning of this.shown?.warnings ?? []) add("div", "warning", this.warnings).textContent = warning;
    this.arrange();
  }

  /** Show where everything is. */
  arrange() {
    const { width, height } = this.size;
    // As large as the room allows, whichever side limits it.
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.style.width = `min(100cqw, 100cqh * ${width} / ${height})`;
    for (const [number, box] of this.places()) {
      const item = this.items.get(number);
      this.place(item, box);
      item.classList.toggle("chosen", number === this.chosen);
      item.title = `${this.title(number)}: drag it or its corner (Alt: no snapping), double-click to fill its slot`;
    }
    this.label.textContent = this.chosen ? this.title(this.chosen) : "";
  }

  /** @param {HTMLElement} element @param {any} box */
  place(element, box) {
    const { width, height } = this.size;
    element.style.left = `${(box.x / width) * 100}%`;
    element.style.top = `${(box.y / height) * 100}%`;
    element.style.width = `${(box.width / width) * 100}%`;
    element.style.height = `${(box.height / height) * 100}%`;
  }

  makeItem(number) {
    const item = add("div", "item", this.stage);
    item.dataset.number = `${number}`;
    const ran = this.shown?.references.find((each) => each.number === number);
    if (ran) {
      const picture = add("img", "picture", item);
      picture.src = this.address(ran.thumbnail);
      picture.draggable = false;
    }
    add("b", "number", item).textContent = `${number}`;
    const grip = add("div", "grip", item);
    item.addEventListener("pointerdown", (event) => this.drag(event, number, event.target === grip));
    item.addEventListener("dblclick", () => this.fillSlot(number));
    return item;
  }

  title(number) {
    const name = this.shown?.references.find((each) => each.number === number)?.name;
    return name ? `${number} ${name}` : `${number}`;
  }

  address({ filename, subfolder, type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
  }

  /** Follow the pointer until it is released. */
  drag(down, number, resizing) {
    if (down.button !== 0) return;
    down.stopPropagation(); // else the node or the graph moves
    this.chosen = number;
    const places = this.places();
    const start = places.get(number);
    const scale = this.size.width / this.stage.getBoundingClientRect().width;
    const slots = this.slots();
    this.arrange();
    const item = this.items.get(number);
    item.setPointerCapture(down.pointerId);
    const done = new AbortController();
    const listen = { signal: done.signal };
    item.addEventListener(
      "pointermove",
      (move) => {
        const across = (move.clientX - down.clientX) * scale;
        const along = (move.clientY - down.clientY) * scale;
        const reach = move.altKey ? 0 : SNAP_REACH * scale;
        const box = resizing
          ? resized(start, start.width + across, slots, this.size, reach)
          : snapped({ ...start, x: start.x + across, y: start.y + along }, slots, this.size, reach);
        this.keep(new Map(places).set(number, box));
      },
      listen,
    );
    for (const end of ["pointerup", "pointercancel"]) item.addEventListener(end, () => done.abort(), listen);
  }
}

app.registerExtension({
  name: "longreel.castCanvas",
  getCustomWidgets() {
    return {
      LONGREEL_CANVAS(node, name) {
        const canvas = new CastCanvas(node);
        const widget = node.addDOMWidget(name, "LONGREEL_CANVAS", canvas.element, {
          getValue: () => canvas.text,
          setValue: (text) => {
            canvas.text = text ?? "";
            canvas.update();
          },
          getMinHeight: () => 240,
          hideOnZoom: false,
        });
        const ran = node.onExecuted;
        node.onExecuted = function (output) {
          ran?.apply(this, arguments);
          if (output?.longreel_canvas) canvas.shown = output.longreel_canvas[0];
          canvas.draw();
        };
        const connected = node.onConnectionsChange;
        node.onConnectionsChange = function () {
          connected?.apply(this, arguments);
          canvas.update();
        };
        canvas.draw();
        return { widget, minWidth: 400, minHeight: 300 };
      },
    };
  },
  nodeCreated(node) {
    const widget = node.widgets?.find((each) => each.type === "LONGREEL_CANVAS");
    if (!widget) return;
    // The canvas changes with its size and with the kind of layout.
    for (const each of node.widgets.filter(({ name }) => ["width", "height", "layout"].includes(name))) {
      const changed = each.callback;
      each.callback = function () {
        changed?.apply(this, arguments);
        widget.value = widget.value;
      };
    }
  },
});
