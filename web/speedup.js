// @ts-check
/**
 * What "Speed up with ERTACache" changes in a workflow, and what it leaves alone. KSampler becomes ERTA Cached Sampler;
 * for any other sampler ERTA Cache comes last on the model's line, before the sampler or its guider.
 */
import { liveNode, newNode, valuesOf } from "./graph.js";
import { Workflow } from "./workflow.js";

/** @typedef {import("./workflow.js").Graph} Graph */
/** @typedef {import("./workflow.js").Node} Node */
/** @typedef {import("./workflow.js").Place} Place */
/** @typedef {"inactive" | "steps" | "sampler" | "cache" | "model"} Reason why a sampler is left alone */
/** @typedef {{ graph: Graph, node: Node, reason?: Reason, targets: Place[], caches: Place[], steps: number[] }} Found a sampler */
/** @typedef {{ graph: any, node: any }} Only ids: one sampler, asked for by name */

const [PLAIN, OURS, PATCH] = ["KSampler", "ERTACachedSampler", "ERTACache"];
const LEAST_STEPS = 10; // below it hardly a step can be reused
// By what the packs call them. Nodes for attention's keys and values are called caches too: those get along with ours.
const OTHER_CACHE = /(easy|lazy|tea|mag|fb|sea)_?cache|first_?block|wave_?speed|cache_?dit|dit_?cache/i;
const SIZE = "size before ERTACache"; // a property that brings the size back
const NONE = { inputs: [], widgets: [] };

/** @param {{ type: any }} slot @param {string} type */
const isOf = (slot, type) => String(slot.type).split(",").includes(type);

/** Works on nodes of a workflow and on those of the canvas. @param {{ inputs?: any[], outputs?: any[] }} node */
export function isSampler({ inputs, outputs }) {
  const has = (/** @type {string} */ name) => !!inputs?.some((input) => input.name === name);
  const takes = (/** @type {string} */ type) => !!inputs?.some((input) => isOf(input, type));
  if (!outputs?.some((output) => isOf(output, "LATENT"))) return false;
  return takes("GUIDER") || (takes("MODEL") && has("model") && (takes("SAMPLER") || has("sampler_name")));
}

/** @param {string} type */
export const isOurs = (type) => type === OURS || type === PATCH;

/** @param {Workflow} workflow @param {Only} [only] @returns {Found[]} samplers that are not sped up yet */
export function samplersIn(workflow, only) {
  const active = activeGraphs(workflow);
  return workflow.graphs.flatMap((graph) =>
    graph.nodes
      .filter((node) => isSampler(node) && !node.type.startsWith("ERTA") && isAsked(graph, node, only))
      .map((node) => judged(graph, node, active, only))
      .filter((found) => !found.targets.some(isSpedUp)),
  );
}

/** @param {Graph} graph @param {Node} node @param {Only} [only] */
function isAsked({ isRoot, data }, node, only) {
  return !only || (String(node.id) === String(only.node) && (isRoot ? null : data.id) === only.graph);
}

/** Graphs that take part in a run: the main one, and what is shown by a node that does. @param {Workflow} workflow */
function activeGraphs({ graphs }) {
  const [root] = graphs;
  const active = new Set([root]);
  for (const graph of active) {
    const shown = graph.nodes.filter((node) => !node.mode).map((node) => node.type);
    for (const inner of graphs) if (!inner.isRoot && shown.includes(inner.data.id)) active.add(inner);
  }
  return active;
}

/** @param {Graph} graph @param {Node} node @param {Set<Graph>} active @param {Only} [only] @returns {Found} */
function judged(graph, node, active, only) {
  const targets = modelInputs(graph, node);
  const caches = targets.flatMap((target) => lineOf(target)).filter(({ node }) => OTHER_CACHE.test(node.type));
  const steps = stepsOf(graph, node);
  const few = steps.length > 0 && steps.every((count) => count < LEAST_STEPS);
  const names = settingOf(graph, node, "sampler_name", "SAMPLER");
  /** @type {[Reason, boolean][]} who asks for one sampler by name knows its state and its steps */
  const reasons = [
    ["inactive", !only && (!!node.mode || !active.has(graph))],
    ["model", !targets.length],
    ["sampler", names.length > 0 && names.every((name) => String(name).includes("cfg_pp"))],
    ["steps", !only && few],
    ["cache", caches.length > 0],
  ];
  return { graph, node, targets, caches, steps, reason: reasons.find(([, holds]) => holds)?.[0] };
}

/** The inputs at which a sampler's model arrives: its own, or those of its guiders. @param {Graph} graph @param {Node} node @returns {Place[]} */
function modelInputs(graph, node) {
  // Of a guider with two models, the second is the one of the negative prompt.
  const slot = node.inputs?.findIndex((input) => input.name === "model" && isOf(input, "MODEL")) ?? -1;
  if (slot >= 0) return graph.sources(node.inputs?.[slot].link).length ? [{ graph, node, slot }] : [];
  return before(graph, node, "GUIDER").flatMap((source) => modelInputs(source.graph, source.node));
}

/** The nodes that feed a node's inputs of a type. @param {Graph} graph @param {Node} node @param {string} type */
function before(graph, node, type) {
  const inputs = (node.inputs ?? []).filter((input) => isOf(input, type) || isOf(input, "*"));
  return inputs.flatMap((input) => graph.sources(input.link));
}

/** The nodes that a model passes on its way to an input, bypassed ones left out. @param {Place} place @param {Set<Node>} seen @returns {Place[]} */
function lineOf({ graph, node, slot }, seen = new Set()) {
  return graph.sources(node.inputs?.[slot].link).flatMap((source) => {
    if (seen.has(source.node)) return [];
    seen.add(source.node);
    const further = (source.node.inputs ?? []).flatMap((input, slot) => (isOf(input, "MODEL") || isOf(input, "*") ? [{ ...source, slot }] : []));
    return [...(source.node.mode ? [] : [source]), ...further.flatMap((place) => lineOf(place, seen))];
  });
}

/** @param {Place} place */
function isSpedUp(place) {
  return lineOf(place).some(({ node }) => node.type === PATCH);
}

/** What the steps of a sampler may be; none where that is decided in a run. @param {Graph} graph @param {Node} node @returns {number[]} */
function stepsOf(graph, node) {
  const counts = settingOf(graph, node, "steps", "SIGMAS").map(Number);
  if (counts.length) return counts;
  return settingOf(graph, node, "sigmas", "SIGMAS").map((list) => String(list).split(",").length - 1);
}

/** A widget of a node, or of the nodes that feed its inputs of a type. @param {Graph} graph @param {Node} node @param {string} name @param {string} type @returns {any[]} */
function settingOf(graph, node, name, type) {
  if (name in valuesOf(live(graph, node) ?? NONE)) return possible(graph, node, name);
  return before(graph, node, type).flatMap((source) => settingOf(source.graph, source.node, name, type));
}

/**
 * The values that a widget may have: its own, or those it is linked to, by each of the nodes that show a subgraph.
 * @param {Graph} graph @param {Node} node @param {string} name @returns {any[]} none where it is not known before a run
 */
function possible(graph, node, name) {
  const input = node.inputs?.find((one) => one.name === name && one.link != null);
  const link = graph.link(input?.link);
  if (!link) return [valuesOf(live(graph, node) ?? NONE)[name]].filter((value) => value !== undefined);
  if (graph.node(link.origin_id)) return graph.sources(link.id).flatMap((source) => possible(source.graph, source.node, "value"));
  const shown = graph.data.inputs?.[link.origin_slot]?.name;
  return graph.hosts().flatMap((host) => possible(host.graph, host.node, shown));
}

/** @param {Graph} graph @param {Node} node */
function live({ isRoot, data }, node) {
  return liveNode(isRoot ? null : data.id, node.id);
}

/** Changes the workflow. @param {Found[]} samplers those that are not left alone @param {boolean} removing other caches on their way */
export function speedUp(samplers, removing) {
  if (removing) for (const { graph, node } of new Set(samplers.flatMap((one) => one.caches))) removeFrom(graph, node);
  /** @type {Set<Node>} samplers may share a guider */
  const done = new Set();
  for (const { graph, node, targets } of samplers) {
    if (node.type === PLAIN) exchange(graph, node, OURS);
    else for (const target of targets) if (!done.has(target.node)) done.add(target.node) && target.graph.insert(target, newNode(PATCH), "model");
  }
}

/** The way back. @param {Workflow} workflow @param {Only} [only] @returns {Node[]} what was there */
export function goBack(workflow, only) {
  const found = workflow.graphs.flatMap((graph) => graph.nodes.filter((node) => isOurs(node.type) && isAsked(graph, node, only)).map((node) => ({ graph, node })));
  for (const { graph, node } of found) {
    if (node.type === OURS) exchange(graph, node, PLAIN);
    else removeFrom(graph, node);
  }
  return found.map(({ node }) => node);
}

/** @param {Graph} graph @param {Node} node */
function removeFrom(graph, node) {
  const input = node.inputs?.find((one) => isOf(one, "MODEL"));
  if (graph.nodes.includes(node)) graph.bypass(node, input?.name ?? "");
}

/** A node of another type with the same values in the same place. @param {Graph} graph @param {Node} node @param {string} type */
function exchange(graph, node, type) {
  const made = newNode(type, valuesOf(live(graph, node) ?? NONE));
  const { id, pos, size, flags, order, mode, color, bgcolor, boxcolor, shape, title } = node;
  const kept = Object.entries({ id, pos, flags, order, mode, color, bgcolor, boxcolor, shape });
  Object.assign(made, Object.fromEntries(kept.filter(([, value]) => value !== undefined)));
  if (title && title !== node.type) made.title = title;
  const { [SIZE]: earlier, ...properties } = node.properties ?? {};
  made.properties = { ...properties, ...made.properties, ...(type === OURS ? { [SIZE]: size } : {}) };
  const larger = [Math.max(size[0], made.size[0]), Math.max(size[1], made.size[1])];
  made.size = type === OURS ? larger : earlier ?? size;
  graph.replace(node, made);
}
