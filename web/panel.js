// @ts-check
/** The one widget that a node of ours gets: the forecast of its knob, the plan strip, the report, the profile. */
import { app } from "../../scripts/app.js";
import { CompareView } from "./compare.js";
import { html } from "./dom.js";
import { forecast } from "./forecast.js";
import { after, allNodes, widgetOf } from "./graph.js";
import { ProfileView } from "./profile_view.js";
import { noteList, reportParts, warningsIn } from "./report.js";
import { Strip } from "./strip.js";
import { translate } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {{ text?: string[], erta?: any[] }} Output */

const WIDGET = "erta_report"; // its name and its type, which must not be one of ComfyUI's own
const KNOBS = ["speed", "steps", "mode", "preset", "threshold", "sampler_name"];
const CACHING = new Set(["ERTACachedSampler", "ERTACache"]);
const PROFILING = new Set(["ERTAProfile", "ERTALoadProfile"]);
const MARGINS = 20; // that ComfyUI leaves around an element, above and below
const HEIGHTS = { ERTACachedSampler: 230, ERTACache: 230, ERTAProfile: 374, ERTALoadProfile: 404, ERTACompare: 80 };

/** @type {WeakMap<Node, Panel>} */
const panels = new WeakMap();

/** @param {Node | undefined} node */
export function panelOf(node) {
  return node && panels.get(node);
}

/** @param {string} [comfyClass] */
export function hasPanel(comfyClass) {
  return !!comfyClass && comfyClass in HEIGHTS;
}

export class Panel {
  /** @param {Node} node @param {HTMLElement[]} tools */
  constructor(node, tools = []) {
    this.node = node;
    const caching = CACHING.has(node.comfyClass);
    this.forecast = caching ? html("div", { class: "erta-forecast" }) : undefined;
    this.strip = caching ? new Strip() : undefined;
    this.profile = PROFILING.has(node.comfyClass) ? new ProfileView() : undefined;
    const reportsOf = (/** @type {Node} */ other) => panelOf(other)?.output?.erta;
    this.compare = node.comfyClass === "ERTACompare" ? new CompareView(node, reportsOf) : undefined;
    this.text = html("div", { class: "erta-text", tabindex: 0, role: "region", "aria-label": translate("ERTA report") });
    this.element = html("div", { class: "erta-panel" });
    const parts = [this.forecast, this.strip?.element, caching && legend(), this.profile?.element, this.compare?.element];
    this.element.append(...parts.filter((part) => !!part), this.text);
    if (tools.length) this.element.append(html("div", { class: "erta-tools" }, ...tools));
    this.say(hintOf(node.comfyClass));
    /** @type {Output | undefined} what is shown */
    this.output = undefined;
    /** @type {Record<string, any> | undefined} how the knobs stood when it came */
    this.ran = undefined;
    this.addTo(node);
    forwardPointer(this.element);
    panels.set(node, this);
  }

  /** @param {Node} node */
  addTo(node) {
    const height = /** @type {Record<string, number>} */ (HEIGHTS)[node.comfyClass];
    this.element.style.setProperty("--erta-height", `${height}px`);
    const widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false, // not in the prompt
      hideOnZoom: false,
      getValue: () => this.output?.text?.join("\n\n") ?? "",
      setValue: () => {},
      getMinHeight: () => Math.max(height, this.compare?.height ?? 0) + MARGINS,
    });
    widget.serialize = false; // not in the workflow
    for (const name of this.forecast ? KNOBS : []) {
      const knob = widgetOf(node, name);
      if (knob) after(knob, "callback", () => this.refresh());
    }
    after(node, "onConnectionsChange", () => this.refresh());
    after(node, "onRemoved", () => this.remove());
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

  /** What an executed event or ComfyUI's own memory of one holds. @param {Output} output @param {Record<string, any>} [ran] */
  show(output, ran = this.knobs()) {
    const content = output.erta?.[output.erta.length - 1];
    this.output = output;
    this.ran = ran;
    if (this.profile && content?.curve?.length) {
      this.profile.show(content);
      this.put(...noteList(content.notes));
      for (const node of allNodes()) panelOf(node)?.refresh(); // it may be connected to one of them
      return;
    }
    if (this.compare && content?.clips) {
      this.compare.show(content);
      return this.put();
    }
    if (content?.calls === undefined) return this.say(...(output.text ?? []));
    this.strip?.finished(content.compute ?? "", content.sigmas);
    this.put(...(output.erta ?? []).flatMap((report) => reportParts(report)));
    for (const node of allNodes()) panelOf(node)?.refresh(); // ERTA Compare shows it too
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

  knobs() {
    return Object.fromEntries(KNOBS.map((name) => [name, widgetOf(this.node, name)?.value]));
  }

  /** Says what the knobs come to as they stand now. */
  refresh() {
    this.compare?.showRenders();
    if (!this.forecast) return;
    const linked = this.isLinked("speed") || this.isLinked("steps");
    const now = this.knobs();
    const fixed = (now.preset ?? "none") !== "none" || (now.mode === "paper" && now.threshold > 0);
    const curve = this.knownCurve(now);
    const words = linked
      ? translate("Speed or steps come from another node.")
      : forecast({ speed: now.speed, calls: this.calls(now, curve), curve, fixed });
    if (this.forecast.textContent !== words) this.forecast.textContent = words;
  }

  /** @param {string} name */
  isLinked(name) {
    return !!this.node.inputs?.some((input) => input.widget?.name === name && input.link != null);
  }

  /** Some samplers call the model more than once a step: the last run shows how often. @param {Record<string, any>} now @param {any[]} curve */
  calls(now, curve) {
    const last = this.output?.erta?.[this.output.erta.length - 1]?.calls;
    if (now.steps === undefined) return last ?? curve[0]?.of;
    const comparable = last && this.ran?.steps && this.ran.sampler_name === now.sampler_name;
    return comparable ? Math.round((now.steps * last) / this.ran?.steps) : now.steps;
  }

  /** Of the last run if it was of the same mode, else of the profile that is connected. @param {Record<string, any>} now */
  knownCurve(now) {
    const last = this.output?.erta?.[this.output.erta.length - 1]?.curve;
    if (last?.length && this.ran?.mode === now.mode) return last;
    const slot = this.node.inputs?.findIndex((input) => input.name === "profile" && input.link != null) ?? -1;
    const source = slot < 0 ? undefined : panelOf(this.node.getInputNode(slot) ?? undefined);
    return source?.output?.erta?.[0]?.curve ?? [];
  }
}

/** @param {string} comfyClass */
function hintOf(comfyClass) {
  if (PROFILING.has(comfyClass)) return translate("Run it once: then the predicted error at each speed appears here.");
  if (comfyClass === "ERTACompare") return translate("Run it: both clips and how far they are apart appear here.");
  return translate("The report of the run appears here.");
}

function legend() {
  const computed = html("span", { class: "erta-key computed" }, translate("computed"));
  const reused = html("span", { class: "erta-key reused" }, translate("reused"));
  return html("div", { class: "erta-legend", "aria-hidden": "true" }, computed, reused);
}

/** Controls keep their clicks; the wheel and the middle button still move the canvas. @param {HTMLElement} element */
function forwardPointer(element) {
  element.addEventListener("pointerdown", (event) => {
    const inside = /** @type {Element} */ (event.target).closest("input, button, .erta-curve");
    if (inside) event.stopPropagation();
    else if (event.button === 1) app.canvas?.processMouseDown?.(event);
  });
  element.addEventListener(
    "wheel",
    (event) => {
      const text = /** @type {Element} */ (event.target).closest(".erta-text");
      const scrolls = text && text.scrollHeight > text.clientHeight && !event.ctrlKey;
      if (scrolls) event.stopPropagation();
      else if (!(/** @type {any} */ (globalThis).LiteGraph?.vueNodesMode)) app.canvas?.processMouseWheel?.(event);
    },
    { passive: true },
  );
}
