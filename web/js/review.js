/**
 * Film With Review: what waits for a decision, and a button for each decision, in both renderers.
 *
 * The state is the server's (the project's review.json); the node asks for it when it is made, after a run, when the
 * page comes back to the front, and when the server does. So a reload, or a second page, shows what is true.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const CLASS = "LongreelReviewFilm";
const NAME = "longreel_review";
const HEIGHT = 104;
const STYLE = `
box-sizing: border-box; width: 100%; height: 100%; overflow: hidden; padding: 6px 8px; border-radius: 4px;
display: flex; flex-direction: column; gap: 6px; font: 12px/1.4 sans-serif;
color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
`;
const BUTTON = `
flex: 1; padding: 4px 2px; font: inherit; cursor: pointer; border-radius: 4px; white-space: nowrap;
border: 1px solid var(--border-color, #555); color: var(--input-text, #ddd); background: var(--comfy-menu-bg, #333);
`;
const BUTTONS = [
  ["approve", "Approve", "The film goes on behind this shot; queues the next one."],
  ["retry", "Another seed", "Films this shot with another seed; queues it. This take stays in the project."],
  ["edit", "Edit", "Goes to the storyboard. Change the shot's words there and run again."],
  ["stop", "Stop here", "The film ends with this shot, until it is approved."],
];

/** @param {any} node @returns {string} */
function projectOf(node) {
  return String(node.widgets?.find((/** @type {any} */ widget) => widget.name === "project")?.value ?? "").trim();
}

/** @param {string} project @param {object} [body] */
async function ask(project, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(`/longreel/projects/${encodeURIComponent(project)}/review`, post);
  const status = await answer.json();
  if (!answer.ok) throw new Error(status.error ?? answer.statusText);
  return status;
}

/** What a state is in words. @param {any} status */
function words(status) {
  const waiting = status.waiting;
  if (!waiting) {
    const approved = status.approved.length;
    return approved ? `Takes approved: ${approved}. Run goes on with the film.` : "Run films the first shot.";
  }
  const shot = `Shot ${waiting.shot} of ${waiting.shots}`;
  const take = `seed ${waiting.seed}, take ${waiting.take}`;
  if (!waiting.filmed) return `${shot} (${take}) is not filmed yet.`;
  if (waiting.stopped) return `The film ends with shot ${waiting.shot} of ${waiting.shots} (${take}). Approve it to go on.`;
  return `${shot} (${take}) waits for your decision.`;
}

/** @param {any} node @param {string} text @param {any} [status] */
function show(node, text, status) {
  const { element } = node.widgets.find((/** @type {any} */ widget) => widget.name === NAME);
  element.firstChild.textContent = text;
  node.longreelWaiting = status?.waiting ?? null;
  const decidable = Boolean(node.longreelWaiting?.filmed);
  for (const button of element.querySelectorAll("button")) {
    button.disabled = !decidable && button.dataset.decision !== "edit";
    button.style.opacity = button.disabled ? "0.5" : "1";
  }
}

/** @param {any} node */
async function refresh(node) {
  const project = projectOf(node);
  if (!project) return show(node, "Name a project to review its film.");
  try {
    const status = await ask(project);
    if (projectOf(node) === project) show(node, words(status), status);
  } catch (error) {
    show(node, String(/** @type {Error} */ (error).message));
  }
}

/** Goes to the node that the storyboard comes from, ready to type. @param {any} node */
function edit(node) {
  const link = node.inputs?.find((/** @type {any} */ input) => input.name === "storyboard")?.link;
  const origin = link == null ? null : node.graph.getNodeById(node.graph.links[link]?.origin_id);
  if (!origin) return;
  app.canvas.selectNode(origin);
  app.canvas.centerOnNode(origin);
  const text = origin.widgets?.find((/** @type {any} */ widget) => widget.name === "text");
  (text?.inputEl ?? text?.element)?.focus?.();
}

/** @param {any} node @param {string} decision */
async function decide(node, decision) {
  if (decision === "edit") {
    setTimeout(() => edit(node)); // the editor selects the node whose element is pressed, after this
    return;
  }
  const waiting = node.longreelWaiting;
  if (!waiting) return;
  try {
    const status = await ask(projectOf(node), { take: waiting.take, decision });
    show(node, words(status), status);
  } catch (error) {
    show(node, String(/** @type {Error} */ (error).message));
    return;
  }
  if (decision !== "stop") await app.queuePrompt(0, 1);
}

/** @param {any} node */
function make(node) {
  const element = document.createElement("div");
  element.className = "longreel-review";
  element.style.cssText = STYLE;
  const status = document.createElement("div");
  status.setAttribute("role", "status");
  status.style.cssText = "flex: 1; overflow-y: auto; user-select: text;";
  const row = document.createElement("div");
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "Decision about the shot");
  row.style.cssText = "display: flex; gap: 4px;";
  for (const [decision, label, title] of BUTTONS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.title = title;
    button.dataset.decision = decision;
    button.style.cssText = BUTTON;
    button.addEventListener("click", () => decide(node, decision));
    row.append(button);
  }
  element.append(status, row);
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  widget.serialize = false;
  show(node, "");
}

function refreshAll() {
  for (const graph of [app.rootGraph ?? app.graph, ...(app.rootGraph?.subgraphs?.values() ?? [])]) {
    for (const node of graph?.nodes ?? []) if (node.comfyClass === CLASS) refresh(node);
  }
}

app.registerExtension({
  name: "longreel.review",
  setup() {
    for (const event of ["execution_success", "execution_error", "execution_interrupted", "reconnected"]) {
      api.addEventListener(event, refreshAll);
    }
    window.addEventListener("focus", refreshAll);
  },
  nodeCreated(node) {
    if (node.comfyClass !== CLASS) return;
    make(node);
    const project = node.widgets.find((/** @type {any} */ widget) => widget.name === "project");
    const changed = project.callback;
    project.callback = function () {
      changed?.apply(this, arguments);
      refresh(node);
    };
    setTimeout(() => refresh(node));
  },
  loadedGraphNode(node) {
    if (node.comfyClass === CLASS) refresh(node);
  },
});
