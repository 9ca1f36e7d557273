// @ts-check
/**
 * Two things that a run leaves on its node: the report, to be read, and the plan, to be saved with the workflow.
 *
 * The plan's widget has two values. What is saved is the plan of the last run. What is queued stays what the widget
 * held before that run filled it: with the new plan in the prompt, ComfyUI would take an unchanged workflow for a
 * changed one and sample again. A workflow that is loaded, or a plan that is typed or cleared, is queued as it stands.
 */
import { app } from "../../scripts/app.js";

/** @typedef {{ name: string, value: string, serialize?: boolean, serializeValue?: () => string, options: any }} Widget */
/** @typedef {{ text?: string[], erta?: { plan?: string }[] }} Output */
/**
 * @typedef {object} Node
 * @property {string} comfyClass
 * @property {Widget[]} [widgets]
 * @property {any} [subgraph]
 * @property {(output: Output | null) => void} [onExecuted]
 * @property {(name: string, type: string, element: HTMLElement, options: object) => Widget} addDOMWidget
 */

const REPORTING = new Set(["ERTAProfile", "ERTALoadProfile", "ERTACachedSampler", "ERTACache", "ERTACompare"]);
const REPORT = "erta_report";

app.registerExtension({
  name: "ertacache.travel",

  setup() {
    app.api.addEventListener("ertacache.step", (/** @type {any} */ { detail }) => {
      const strip = detail.kinds.replaceAll("1", "■").replaceAll("0", "□");
      show(nodeAt(detail.node), `■ computed  □ reused\n${strip}`);
    });
    app.api.addEventListener("ertacache.report", (/** @type {any} */ { detail }) => {
      show(nodeAt(detail.node), detail.report.text);
    });
  },

  /** @param {Node} node */
  nodeCreated(node) {
    if (!REPORTING.has(node.comfyClass)) return;
    addReport(node);
    const plan = node.comfyClass === "ERTACachedSampler" ? widgetOf(node, "plan") : undefined;
    const fill = plan && carry(plan);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      show(node, output?.text?.join("\n\n"));
      fill?.(output?.erta?.at(-1)?.plan);
    };
  },

  /** Outputs come back when a workflow's tab is opened again. @param {Record<string, Output>} outputs */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(nodeAt(id), output.text?.join("\n\n"));
  },
});

/**
 * Gives the plan's widget its two values and returns the function that fills it.
 * @param {Widget} widget
 * @returns {(plan: string | undefined) => void}
 */
function carry(widget) {
  /** @type {string | undefined} */
  let filled;
  let queued = "";
  widget.serializeValue = () => (widget.value === filled ? queued : widget.value);
  widget.options.getMinHeight = widget.options.getMaxHeight = () => 50; // some KB of JSON: nobody reads it here
  return (plan) => {
    if (!plan) return;
    if (widget.value !== filled) queued = widget.value;
    filled = widget.value = plan;
  };
}

/** A read-only text, the last widget, in neither the saved workflow nor the prompt. @param {Node} node */
function addReport(node) {
  const area = document.createElement("textarea");
  area.className = "comfy-multiline-input";
  area.style.cssText = "box-sizing: border-box; width: 100%; height: 100%; min-height: 80px"; // Nodes 2.0 gives no size
  area.readOnly = true;
  area.placeholder = "The report of the run appears here.";
  area.setAttribute("aria-label", "ERTA report");
  const widget = node.addDOMWidget(REPORT, REPORT, area, {
    serialize: false, // not in the prompt
    getValue: () => area.value,
    setValue: (/** @type {string} */ text) => (area.value = text),
    getMinHeight: () => 100,
  });
  widget.serialize = false; // not in the workflow
}

/** @param {Node | undefined} node @param {string | undefined} text */
function show(node, text) {
  const report = node && widgetOf(node, REPORT);
  if (report && text) report.value = text;
}

/** @param {Node} node @param {string} name */
function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** The node of an execution id, "1:2:3" inside subgraphs. @param {string} id @returns {Node | undefined} */
function nodeAt(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const step of id.split(":")) {
    node = graph?.getNodeById(step);
    graph = node?.subgraph;
  }
  return node;
}
