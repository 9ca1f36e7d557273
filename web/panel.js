// @ts-check
/** The one widget that a node of ours gets: what the knob comes to, the plan strip, the report, the profile. */
import { app } from "../../scripts/app.js";
import { addBadge, tellCollapsed } from "./collapsed.js";
import { CompareView } from "./compare.js";
import { html } from "./dom.js";
import { forecast } from "./forecast.js";
import { after, allNodes, widgetOf } from "./graph.js";
import { ProfileView } from "./profile_view.js";
import { Progress } from "./progress.js";
import { gainOf, noteList, reportParts, warningsIn } from "./report.js";
import { Strip } from "./strip.js";
import { translate } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {{ text?: string[], erta?: any[] }} Output */

const WIDGET = "erta_report"; // its name and its type, which must not be one of ComfyUI's own
const KNOBS = ["speed", "steps", "sampler_name"];
const OPTIONS = ["mode", "preset", "threshold"];
const CACHING = new Set(["ERTACachedSampler", "ERTACache"]);
const PROFILING = new Set(["ERTAProfile", "ERTALoadProfile"]);
const MARGIN = 4; // around the element, in pixels
const TALLEST = { ERTACachedSampler: 240, ERTACache: 240, ERTAProfile: 460, ERTALoadProfile: 460, ERTACompare: 700 };

/** @type {WeakMap<Node, Panel>} */
const panels = new WeakMap();

/** @param {Node | undefined | null} node */
export function panelOf(node) {
  return node ? panels.get(node) : undefined;
}

/** @param {string} [comfyClass] */
export function hasPanel(comfyClass) {
  return !!comfyClass && comfyClass in TALLEST;
}

/** After something that several nodes tell of has changed: a profile, options, the graph that is shown. */
export function refreshAll() {
  for (const node of allNodes()) panelOf(node)?.refresh();
  tellCollapsed((node) => panelOf(node)?.gain() ?? "");
}

export class Panel {
  /** @param {Node} node @param {HTMLElement[]} tools */
  constructor(node, tools = []) {
    this.node = node;
    const caching = CACHING.has(node.comfyClass);
    this.forecast = caching ? html("div", { class: "erta-forecast" }) : undefined;
    this.status = html("div", { class: "erta-status", role: "status", hidden: "" });
    this.strip = caching ? new Strip() : undefined;
    this.profile = PROFILING.has(node.comfyClass) ? new ProfileView(() => this.fit()) : undefined;
    const reportsOf = (/** @type {Node} */ other) => panelOf(other)?.output?.erta;
    this.compare = node.comfyClass === "ERTACompare" ? new CompareView(node, reportsOf, () => this.fit()) : undefined;
    this.text = html("div", { class: "erta-text", tabindex: 0, role: "region", "aria-label": translate("ERTA report") });
    this.tools = html("div", { class: "erta-tools" }, ...tools);
    this.body = html("div", { class: "erta-body" });
    const parts = [this.forecast, this.status, this.strip?.element, this.profile?.element, this.compare?.element, this.text];
    this.body.append(...parts.filter((part) => !!part), ...(tools.length ? [this.tools] : []));
    this.element = html("div", { class: "erta-panel" }, this.body);
    /** @type {Output | undefined} what is shown */
    this.output = undefined;
    /** @type {Record<string, any> | undefined} how the knobs stood when it came */
    this.ran = undefined;
    /** @type {Progress | undefined} of the run that goes on */
    this.progress = undefined;
    this.height = 0;
    this.say(...(caching ? [] : [hintOf(node.comfyClass)]));
    this.addTo(node);
    forwardPointer(this.element);
    panels.set(node, this);
  }

  /** @param {Node} node */
  addTo(node) {
    const widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false, // not in the prompt
      hideOnZoom: false,
      margin: MARGIN,
      getValue: () => this.output?.text?.join("\n\n") ?? "",
      setValue: () => {},
      getMinHeight: () => this.height + 2 * MARGIN,
    });
    widget.serialize = false; // not in the workflow
    for (const name of this.forecast ? KNOBS : []) {
      const knob = widgetOf(node, name);
      if (knob) after(knob, "callback", () => this.refresh());
    }
    after(node, "onConnectionsChange", () => this.refresh());
    after(node, "onRemoved", () => this.remove());
    after(node, "onResize", () => this.fit(false));
    addBadge(node, () => this.gain());
    this.refresh();
  }

  remove() {
    this.profile?.remove();
    this.compare?.remove();
    panels.delete(this.node);
  }

  /**
   * Nodes 2.0 keeps the frame of a node that an undo builds again, and with it the old node's element: take its place.
   */
  takePlace() {
    if (this.element.isConnected || this.node.graph !== app.canvas?.graph) return;
    document.querySelector(`[data-node-id="${CSS.escape(String(this.node.id))}"] .erta-panel`)?.replaceWith(this.element);
  }

  /** As tall as what there is to read, up to a limit; then it scrolls. @param {boolean} grow the node with it */
  fit(grow = true) {
    this.body.classList.toggle("erta-idle", !!this.forecast && !this.output && !this.progress && !this.text.firstChild);
    const most = /** @type {Record<string, number>} */ (TALLEST)[this.node.comfyClass];
    const height = Math.min(naturalHeight(this.body, this.node.size[0] - 2 * MARGIN), most);
    if (height === this.height) return;
    const { size } = this.node;
    const least = this.node.computeSize()[1];
    this.height = height;
    this.element.style.setProperty("--erta-height", `${height}px`);
    if (!grow || /** @type {any} */ (globalThis).LiteGraph?.vueNodesMode) return; // there the page lays it out
    const fitted = Math.abs(size[1] - least) < 2; // else a person has made it taller
    const needed = this.node.computeSize()[1];
    this.node.setSize([size[0], fitted ? needed : Math.max(size[1], needed)]);
  }

  /** A run has begun. @param {import("./progress.js").Begun} begun */
  begin(begun) {
    this.progress = new Progress(begun, widgetOf(this.node, "steps")?.value);
    this.strip?.plan(begun.compute ?? "", begun.sigmas);
    this.put();
    this.refresh();
  }

  /** @param {{ kinds?: string, left?: number }} step */
  step(step) {
    this.strip?.fill(step.kinds ?? "");
    this.progress?.step(step);
    if (this.progress) this.tell(this.progress.words());
  }

  /** The run has ended without a result: what was known of an earlier one stands no more. @param {string} words @param {boolean} [warning] */
  stopped(words, warning = false) {
    this.progress = this.output = this.ran = undefined;
    this.strip?.plan("");
    this.say(words);
    this.text.classList.toggle("erta-warning", warning);
    this.refresh();
  }

  /** What an executed event or ComfyUI's own memory of one holds. @param {Output} output @param {Record<string, any>} [ran] */
  show(output, ran = this.knobs()) {
    const content = output.erta?.[output.erta.length - 1];
    this.output = output;
    this.ran = ran;
    this.progress = undefined;
    this.text.classList.remove("erta-warning");
    if (this.profile && content?.curve?.length) {
      this.profile.show(content);
      this.put(...noteList(content.notes));
    } else if (this.compare && content?.clips) {
      this.compare.show(content);
      this.put();
    } else if (content?.calls === undefined) {
      this.say(...(output.text ?? []));
    } else {
      this.strip?.finished(content.compute ?? "", content.sigmas);
      this.put(...(output.erta ?? []).flatMap((report) => reportParts(report)));
    }
    this.refresh();
  }

  /** Warnings not shown yet: ComfyUI's cache sends an output again. @param {Output} output */
  news({ erta = [] }) {
    const shown = (this.output?.erta ?? []).map((content) => JSON.stringify(content));
    return erta.filter((content) => !shown.includes(JSON.stringify(content))).flatMap(warningsIn);
  }

  /** @param {string[]} lines */
  say(...lines) {
    this.put(...lines.map((line) => html("div", {}, line)));
  }

  /** @param {HTMLElement[]} parts */
  put(...parts) {
    this.text.replaceChildren(...parts);
    this.text.toggleAttribute("hidden", !parts.length);
  }

  /** @param {string} words */
  tell(words) {
    if (this.status.textContent !== words) this.status.textContent = words;
    this.status.toggleAttribute("hidden", !words);
  }

  knobs() {
    const options = this.source("options");
    const read = (/** @type {Node | undefined} */ node) => (/** @type {string} */ name) => [name, node && widgetOf(node, name)?.value];
    return Object.fromEntries([...KNOBS.map(read(this.node)), ...OPTIONS.map(read(options))]);
  }

  /** Says what the knobs come to as they stand now, unless the report below says it. */
  refresh() {
    this.tell(this.progress?.words() ?? "");
    this.compare?.showRenders();
    if (this.forecast) this.predict(this.forecast);
    this.fit();
  }

  /** @param {HTMLElement} line */
  predict(line) {
    const now = this.knobs();
    const asRan = this.output && JSON.stringify(now) === JSON.stringify(this.ran);
    const curve = this.knownCurve(now);
    const fixed = (now.preset ?? "none") !== "none" || (now.mode === "paper" && now.threshold > 0);
    const next = this.isLinked("speed") || this.isLinked("steps")
      ? { count: translate("Speed or steps come from another node") }
      : forecast({ speed: now.speed, calls: this.calls(now, curve), curve, fixed });
    const told = asRan && !(curve.length && !this.lastReport()?.predicted_error?.length);
    line.toggleAttribute("hidden", !!this.progress || !!told);
    line.classList.toggle("erta-warning", !!next.warning);
    const words = [this.output ? `${translate("Next")}: ${next.count}` : next.count, next.expected];
    const said = words.filter(Boolean).join(" · ");
    if (line.textContent !== said) line.textContent = said;
  }

  lastReport() {
    return this.output?.erta?.[this.output.erta.length - 1];
  }

  /** @param {string} name */
  isLinked(name) {
    return !!this.node.inputs?.some((input) => input.widget?.name === name && input.link != null);
  }

  /** The node that an input comes from. @param {string} name */
  source(name) {
    const slot = this.node.inputs?.findIndex((input) => input.name === name && input.link != null) ?? -1;
    return slot < 0 ? undefined : (this.node.getInputNode(slot) ?? undefined);
  }

  /** Some samplers call the model more than once a step: the last run shows how often. @param {Record<string, any>} now @param {any[]} curve */
  calls(now, curve) {
    const last = this.lastReport()?.calls;
    if (now.steps === undefined) return last ?? curve[0]?.of;
    const comparable = last && this.ran?.steps && this.ran.sampler_name === now.sampler_name;
    return comparable ? Math.round((now.steps * last) / this.ran?.steps) : now.steps;
  }

  /** Of the last run if it was of the same mode, else of the profile that is connected. @param {Record<string, any>} now */
  knownCurve(now) {
    const last = this.lastReport()?.curve;
    if (last?.length && this.ran?.mode === now.mode) return last;
    return panelOf(this.source("profile"))?.output?.erta?.[0]?.curve ?? [];
  }

  /** How the run went, in a word; "" where there was none. */
  gain() {
    const report = this.lastReport();
    return report?.calls === undefined ? "" : gainOf(report);
  }
}

/** @param {string} comfyClass */
function hintOf(comfyClass) {
  if (PROFILING.has(comfyClass)) return translate("Run it once: then the predicted error at each speed appears here.");
  return translate("The comparison appears here after a run.");
}

/** Of an element that need not be on the page: a copy of it is laid out. @param {HTMLElement} body @param {number} width */
function naturalHeight(body, width) {
  const frame = html("div", { class: "erta-panel erta-measured", "aria-hidden": "true", style: `width: ${width}px` });
  frame.append(body.cloneNode(true));
  document.body.append(frame);
  const height = frame.offsetHeight;
  frame.remove();
  return height;
}

/** Controls keep their clicks; the wheel and the middle button still move the canvas. @param {HTMLElement} element */
function forwardPointer(element) {
  element.addEventListener("pointerdown", (event) => {
    const inside = /** @type {Element} */ (event.target).closest("input, button, .erta-curve, summary");
    if (inside) event.stopPropagation();
    else if (event.button === 1) app.canvas?.processMouseDown?.(event);
  });
  element.addEventListener(
    "wheel",
    (event) => {
      const scrolls = element.scrollHeight > element.clientHeight && !event.ctrlKey;
      if (scrolls) event.stopPropagation();
      else if (!(/** @type {any} */ (globalThis).LiteGraph?.vueNodesMode)) app.canvas?.processMouseWheel?.(event);
    },
    { passive: true },
  );
}
