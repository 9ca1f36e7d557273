// @ts-check
/** Nodes and their widgets: where they are, and how to listen to them without taking anything away. */
import { app } from "../../scripts/app.js";

/**
 * @typedef {object} Widget
 * @property {string} name
 * @property {any} value
 * @property {any} options
 * @property {boolean} [serialize]
 * @property {boolean} [hidden]
 * @property {(width?: number) => [number, number]} [computeSize]
 * @property {() => any} [serializeValue]
 * @property {(...args: any[]) => any} [callback]
 */
/**
 * @typedef {object} Node
 * @property {number | string} id
 * @property {string} comfyClass
 * @property {any} graph
 * @property {any} [subgraph]
 * @property {Widget[]} [widgets]
 * @property {{ name: string, type?: unknown, link: number | null, widget?: { name: string } }[]} [inputs]
 * @property {(slot: number) => Node | null} getInputNode
 * @property {[number, number]} size
 * @property {{ collapsed?: boolean }} flags
 * @property {any[]} [badges]
 * @property {() => [number, number]} computeSize
 * @property {(size: [number, number]) => void} setSize
 * @property {(name: string, type: string, element: HTMLElement, options: object) => Widget} addDOMWidget
 */

const SETTLED = 250; // milliseconds

/** @returns {any} */
export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/** @param {Node} node @param {string} name */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/**
 * The node of an execution id ("1:2:3" inside subgraphs) or of a locator id (a subgraph's UUID, colon, the node's own).
 * @param {string} id
 * @returns {Node | undefined}
 */
export function nodeAt(id) {
  let graph = rootGraph();
  let node;
  for (const step of String(id).split(":")) {
    const inner = graph?.subgraphs?.get?.(step);
    node = inner ? undefined : graph?.getNodeById(step);
    graph = inner ?? node?.subgraph;
  }
  return node ?? undefined;
}

/** All nodes, those inside subgraphs too. @returns {Node[]} */
export function allNodes() {
  const root = rootGraph();
  const graphs = [root, ...(root?.subgraphs?.values?.() ?? [])];
  return graphs.flatMap((graph) => graph?.nodes ?? []);
}

/** Which workflow and which node in it, the same after a reload; "" where the node is in no graph yet. @param {Node} node */
export function addressOf(node) {
  const root = rootGraph();
  if (!node.graph || !root?.id) return "";
  const within = node.graph === root ? "" : `${node.graph.id}/`;
  return `${root.id}/${within}${node.id}/${node.comfyClass}`;
}

/** Does more after a method or callback, whatever it did before. @param {any} owner @param {string} name @param {(...args: any[]) => void} more */
export function after(owner, name, more) {
  const before = owner[name];
  owner[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    more(...args);
    return result;
  };
}

/** @param {any} graph the id of a subgraph, or null for the main graph @param {any} id @returns {Node | undefined} */
export function liveNode(graph, id) {
  const root = rootGraph();
  return (graph === null ? root : root.subgraphs?.get(graph))?.getNodeById(id) ?? undefined;
}

/** @param {{ widgets?: Widget[] }} node @returns {Record<string, any>} by name */
export function valuesOf({ widgets = [] }) {
  return Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]));
}

/** A node as it is saved, for a graph to load. @param {string} type @param {Record<string, any>} values of its widgets @returns {any} */
export function newNode(type, values = {}) {
  const made = /** @type {any} */ (globalThis).LiteGraph.createNode(type);
  for (const widget of made.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
  const saved = JSON.parse(JSON.stringify(made.serialize()));
  made.onRemoved?.(); // it was only a pattern: its elements go away
  return saved;
}

/** @param {Node} node */
const placeOf = (node) => `${node.graph?.id}/${node.id}`;

/** Of all widgets of all nodes, for `restoreValues`. */
export function valuesByNode() {
  return new Map(allNodes().map((node) => [placeOf(node), valuesOf(node)]));
}

/**
 * After the workflow was loaded again. Front end 1.32.9 gives widgets that a subgraph shows each other's values then.
 * @param {Map<string, Record<string, any>>} values
 */
export function restoreValues(values) {
  for (const node of allNodes()) {
    for (const widget of node.widgets ?? []) {
      const value = values.get(placeOf(node))?.[widget.name];
      const plain = ["string", "number", "boolean"].includes(typeof value);
      if (plain && widget.serialize !== false && widget.value !== value) widget.value = value;
    }
  }
}

/**
 * Changes the graph without a step of undo: what a run fills in is no act of the user's. Not while a workflow is loaded.
 * @param {() => void} change
 */
export function quietly(change) {
  const tracker = changeTracker();
  captureState(); // what the user did before is a step
  change();
  if (!tracker?.activeState) return;
  tracker.activeState = serialized();
  tracker.updateModified?.();
  setTimeout(() => absorbSizes(tracker), SETTLED);
}

/** Nodes 2.0 measures nodes a moment after they have grown. @param {any} tracker */
function absorbSizes(tracker) {
  if (changeTracker() !== tracker) return;
  const sizeless = (/** @type {any} */ state) => JSON.stringify(state, (key, value) => (key === "size" ? undefined : value));
  const now = serialized();
  if (sizeless(now) === sizeless(tracker.activeState)) tracker.activeState = now;
}

/** What holds the steps of undo of the workflow that is shown. @returns {any} */
export function changeTracker() {
  return app.extensionManager.workflow?.activeWorkflow?.changeTracker;
}

/** Makes a step of undo of what the user has changed. */
export function captureState() {
  const tracker = changeTracker();
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the newer name, the older one
}

/** The workflow as it is saved, a copy. @returns {any} */
export function serialized() {
  return JSON.parse(JSON.stringify(rootGraph().serialize()));
}
