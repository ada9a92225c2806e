/**
 * What becomes of each shot of a Storyboard node: by its project on disk, and while it is filmed.
 *
 * The node that films is the one that the storyboard's output leads to; the server says which takes its project has.
 */

import { api } from "../../../scripts/api.js";

const FILMS = ["LongreelFilmStoryboard", "LongreelFilmTakes", "LongreelFilmPlan"];
const PROGRESS = /shot (\d+)\/\d+(?:, block (\d+)\/(\d+))?/;

/** @param {string} path @param {any} body @returns {Promise<any>} Throws an Error with the server's sentence. */
export async function ask(path, body) {
  const response = await api.fetchApi(`/longreel/storyboard/${path}`, { method: "POST", body: JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answers ${response.status}.`);
  return answer;
}

/** The nodes behind an output, through reroutes. @param {any} node @returns {any[]} */
function behind(node) {
  const links = (node?.outputs?.[0]?.links ?? []).map((id) => node.graph.links.get?.(id) ?? node.graph.links[id]);
  const next = links.map((link) => link && node.graph.getNodeById(link.target_id)).filter(Boolean);
  return next.flatMap((each) => (each.type === "Reroute" ? behind(each) : [each]));
}

export class Film {
  /** @param {any} node the Storyboard node @param {() => void} changed called when something is to be shown anew */
  constructor(node, changed) {
    this.node = node;
    this.changed = changed;
    /** @type {any[]} of each shot that is not skipped: action, reason, take, engine */
    this.shots = [];
    /** @type {Map<number, string>} by number of the shot, from 1: what the run says */
    this.running = new Map();
    this.now = 0;
    this.note = "";
    const done = new AbortController();
    this.stop = () => done.abort();
    const listen = (event, action) => api.addEventListener(event, action, { signal: done.signal });
    listen("execution_start", () => this.begin());
    listen("progress_text", ({ detail }) => this.progress(detail));
    listen("execution_error", ({ detail }) => this.fail(detail));
    for (const end of ["execution_success", "execution_interrupted"]) listen(end, () => this.begin());
  }

  /** The node that films this storyboard. */
  get filming() {
    const nodes = behind(this.node);
    return FILMS.map((type) => nodes.find((node) => node.type === type)).find(Boolean);
  }

  /** Ask what becomes of the shots of this text. @param {string} text */
  async refresh(text) {
    this.text = text;
    const node = this.filming;
    const value = (name) => node?.widgets?.find((widget) => widget.name === name)?.value;
    const project = value("project")?.trim();
    const goesOn = node?.inputs?.some((input) => input.name === "reel" && input.link != null);
    let answer = { shots: [] };
    if (!node) this.note = "Connect Film Storyboard to see which shots are kept.";
    else if (!project) this.note = "Name a project on Film Storyboard to keep shots.";
    else if (goesOn) this.note = "The film goes on from a reel: Film Plan says which shots are kept.";
    else {
      this.note = `Project ${project}, as it was filmed last`;
      answer = await ask("status", { text, project, keep_rest: value("keep_rest") ?? false }).catch((error) => ({
        shots: [],
        error: error.message,
      }));
      if (answer.error) this.note = answer.error;
    }
    if (text !== this.text) return;
    this.shots = answer.shots;
    this.changed();
  }

  /** What is said of a shot that is not skipped. @param {number} number from 1 @returns {any} kind, text, picture */
  status(number) {
    const run = this.running.get(number);
    if (run) return { kind: this.now === number ? "filming" : "failed", text: run };
    const shot = this.shots[number - 1];
    if (!shot) return { kind: "", text: "" };
    if (shot.action === "filmed") return { kind: "filmed", text: `will be filmed: ${shot.reason}` };
    const kept = [`kept, take ${shot.take}`, shot.engine].filter(Boolean).join(", ");
    const picture = shot.picture && api.apiURL(`/view?${new URLSearchParams(shot.picture)}`);
    return { kind: "kept", text: shot.action === "kept" ? `${kept}: ${shot.reason}` : kept, picture };
  }

  begin() {
    this.running.clear();
    this.now = 0;
    if (this.text !== undefined) this.refresh(this.text);
  }

  isFilming(id) {
    return String(id).split(":").pop() === String(this.filming?.id);
  }

  progress({ nodeId, text }) {
    const found = this.isFilming(nodeId) && PROGRESS.exec(text);
    if (!found) return;
    this.now = Number(found[1]);
    this.running.clear();
    const part = found[3] ? ` ${Math.round((100 * Number(found[2])) / Number(found[3]))} %` : "";
    this.running.set(this.now, `filming${part}`);
    this.changed();
  }

  fail({ node_id: id, exception_message: message }) {
    if (!this.isFilming(id)) return;
    this.running.clear();
    this.running.set(this.now || 1, `failed: ${String(message).trim().split("\n")[0]}`);
    this.now = 0;
    this.changed();
  }
}
