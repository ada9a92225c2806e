/**
 * What a node of ours says after it ran (`ui.PreviewText` in Python) is drawn on it, in both renderers.
 *
 * The editor draws such text for a few nodes of core alone. It is no value of the node: it is not saved with the
 * workflow, and comes back with the other outputs when its tab is opened again.
 */

import { app } from "../../../scripts/app.js";

const NAME = "longreel_text";
const PROGRESS = "$$node-text-preview"; // the editor's own line of progress
const MOST = 260; // pixels; a longer text scrolls
const MARGIN = 20; // pixels that the classic renderer keeps above and below an element
const STYLE = `
box-sizing: border-box; width: 100%; height: 100%; max-height: ${MOST}px; overflow-y: auto; padding: 4px 8px;
white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; cursor: text; border-radius: 4px;
font: 12px/1.4 sans-serif; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
`;

/** Height in pixels that the text takes at this width. @param {HTMLElement} element @param {number} width */
function heightOf(element, width) {
  const copy = /** @type {HTMLElement} */ (element.cloneNode(true));
  copy.style.cssText += `position: absolute; visibility: hidden; height: auto; width: ${width}px;`;
  document.body.append(copy);
  const height = copy.getBoundingClientRect().height;
  copy.remove();
  return Math.ceil(height);
}

/** @param {any} node @param {string} name */
function remove(node, name) {
  const index = node.widgets?.findIndex((widget) => widget.name === name) ?? -1;
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
}

/** @param {any} node */
function make(node) {
  const element = document.createElement("div");
  element.className = "longreel-text";
  element.style.cssText = STYLE;
  element.tabIndex = 0; // to be scrolled by keyboard
  element.setAttribute("role", "status");
  // The graph zooms with the wheel; a text that scrolls keeps it.
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight && !event.ctrlKey) event.stopPropagation();
  });
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => element.textContent,
    setValue: () => {},
    getMinHeight: () => (widget?.longreelHeight ?? 0) + MARGIN,
    getMaxHeight: () => MOST + MARGIN,
  });
  widget.serialize = false;
  return widget;
}

/** Draw a text on a node, in place of the last; none for an empty one. @param {any} node @param {string} text */
function show(node, text) {
  remove(node, PROGRESS);
  if (!text) {
    remove(node, NAME);
    return;
  }
  const widget = node.widgets?.find((each) => each.name === NAME) ?? make(node);
  widget.element.textContent = text;
  widget.element.setAttribute("aria-label", `${node.title}: ${text}`);
  widget.longreelHeight = Math.min(heightOf(widget.element, node.size[0] - 30), MOST);
  const least = node.computeSize()[1];
  if (node.size[1] < least) node.setSize([node.size[0], least]);
  node.setDirtyCanvas?.(true, true);
}

/** The text in what a node gave to be seen; undefined without any. @param {any} output */
function textOf(output) {
  return output?.text === undefined ? undefined : [output.text].flat().join("\n");
}

/** @param {any} node */
function isOurs(node) {
  return String(node?.comfyClass ?? node?.type).startsWith("Longreel");
}

/** A node by the key of its output: its number, behind that of its subgraph if it is in one. @param {string} key */
function nodeOf(key) {
  const [number, subgraph] = key.split(":").reverse();
  const graph = subgraph ? app.rootGraph?.subgraphs?.get(subgraph) : (app.rootGraph ?? app.graph);
  return graph?.getNodeById(Number(number));
}

app.registerExtension({
  name: "longreel.nodeText",
  nodeCreated(node) {
    if (!isOurs(node)) return;
    const ran = node.onExecuted;
    node.onExecuted = function (output) {
      ran?.apply(this, arguments);
      const text = textOf(output);
      if (text !== undefined) show(this, text);
    };
  },
  onNodeOutputsUpdated(outputs) {
    for (const [key, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(key);
      const text = textOf(output);
      if (isOurs(node) && text !== undefined) show(node, text);
    }
  },
});
