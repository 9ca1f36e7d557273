// @ts-check
/** "Speed up with ERTACache" and the way back, in the menus of nodes and canvas and among the commands. */
import { app } from "../../scripts/app.js";
import { allNodes, captureState, changeTracker, restoreValues, rootGraph, serialized, valuesByNode } from "./graph.js";
import { goBack, isOurs, isSampler, samplersIn, speedUp } from "./speedup.js";
import { toast } from "./profiles.js";
import { translate } from "./words.js";
import { Workflow } from "./workflow.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {import("./speedup.js").Found} Found */
/** @typedef {import("./speedup.js").Only} Only */

const [WORKFLOW, WORKFLOW_BACK] = ["ERTACache.SpeedUp", "ERTACache.Back"];
const [SELECTED, SELECTED_BACK] = ["ERTACache.SpeedUpSelected", "ERTACache.BackSelected"];
const [FASTER, BEFORE] = ["pi pi-bolt", "pi pi-undo"];

// The words are looked up when they are shown: they come after the commands are declared.
export const commands = [
  { id: WORKFLOW, icon: FASTER, label: speedUpWords, function: () => speedUpWorkflow() },
  { id: WORKFLOW_BACK, icon: BEFORE, label: backWords, function: () => backFromIt() },
  { id: SELECTED, icon: FASTER, label: () => translate("Speed up the selected sampler with ERTACache"), function: pressSelected },
  { id: SELECTED_BACK, icon: BEFORE, label: () => translate("Back to the selected sampler without ERTACache"), function: pressSelected },
];
export const menuCommands = [{ path: ["Extensions", "ERTACache"], commands: [WORKFLOW, WORKFLOW_BACK] }];

function speedUpWords() {
  return translate("Speed up this workflow with ERTACache");
}

function backWords() {
  return translate("Back to the workflow without ERTACache");
}

export function canvasItems() {
  const items = [{ content: speedUpWords(), callback: () => void speedUpWorkflow() }];
  const back = { content: backWords(), callback: () => void backFromIt() };
  const used = allNodes().some((node) => isOurs(node.comfyClass));
  return [null, ...items, ...(used ? [back] : [])];
}

/** @param {any} node */
export function nodeItems(node) {
  const only = { graph: node.graph === rootGraph() ? null : node.graph?.id, node: node.id };
  if (isOurs(node.type)) {
    const content = node.type === "ERTACache" ? translate("Remove ERTA Cache") : translate("Back to KSampler");
    return [{ content, callback: () => void backFromIt(only) }];
  }
  if (!isSampler(node) || node.type.startsWith("ERTA")) return [];
  return [{ content: translate("Speed up with ERTACache"), callback: () => void speedUpWorkflow(only) }];
}

/** Buttons above a selected node: in Nodes 2.0 of front end 1.32.9 its menu has no room for others. @param {any} node */
export function toolboxCommands(node) {
  if (!(/** @type {any} */ (globalThis).LiteGraph.vueNodesMode) || !node?.type || !nodeItems(node).length) return [];
  return [isOurs(node.type) ? SELECTED_BACK : SELECTED];
}

function pressSelected() {
  for (const node of Object.values(app.canvas.selected_nodes ?? {}).slice(0, 1)) nodeItems(node)[0]?.callback();
}

/** @param {Only} [only] one sampler of it */
export async function speedUpWorkflow(only) {
  const workflow = current();
  const samplers = samplersIn(workflow, only);
  const removing = await agreed(samplers);
  const chosen = samplers.filter(({ reason }) => !reason || (reason === "cache" && removing));
  const left = samplers.filter((one) => !chosen.includes(one));
  const names = chosen.map(nameOf); // before they are replaced
  speedUp(chosen, removing);
  if (chosen.length) await show(workflow);
  const told = [names.length ? translate("Sped up: {names}.", { names: listed(names) }) : translate("Nothing was changed.")];
  if (left.length) told.push(translate("Left alone: {names}.", { names: listed(left.map((one) => `${nameOf(one)} (${reasonOf(one)})`)) }));
  if (!samplers.length) told.push(translate("No sampler was found that is not sped up already."));
  if (chosen.some(({ steps }) => !steps.length)) told.push(translate("The number of steps is decided in the run: below 10 there is little to gain."));
  toast(chosen.length && !left.length ? "success" : "warn", told.join(" "));
  return { changed: names, left: left.map(({ reason }) => reason) };
}

/** @param {Only} [only] one node of ours */
export async function backFromIt(only) {
  const workflow = current();
  const names = goBack(workflow, only).map((node) => nameOf({ node }));
  if (names.length) await show(workflow);
  const told = names.length ? translate("Without ERTACache again: {names}.", { names: listed(names) }) : translate("Nothing was changed.");
  toast(names.length ? "success" : "warn", told);
  return { changed: names, left: [] };
}

/** Whether other caches on the samplers' way are to be removed: asked, where there are some. @param {Found[]} samplers */
async function agreed(samplers) {
  const names = samplers.filter(({ reason }) => reason === "cache").flatMap(({ caches }) => caches.map(nameOf));
  if (!names.length) return false;
  const message = translate("Two caches on one model disturb each other. Remove {names}?", { names: listed(names) });
  return !!(await app.extensionManager.dialog.confirm({ title: "ERTACache", message }));
}

/** @param {Found} found */
function reasonOf({ reason, steps, caches }) {
  if (reason === "inactive") return translate("muted or bypassed");
  if (reason === "steps") return translate("only {steps} steps: little to gain", { steps: Math.max(...steps) });
  if (reason === "sampler") return translate("a cfg_pp sampler needs every step");
  if (reason === "cache") return translate("has {names}", { names: listed(caches.map(nameOf)) });
  return translate("no model found on its line");
}

/** @param {{ node: import("./workflow.js").Node, graph?: any }} found */
function nameOf({ node }) {
  const title = node.title || /** @type {any} */ (globalThis).LiteGraph.registered_node_types[node.type]?.title;
  return String(title || node.type);
}

/** Equal names once. @param {string[]} names */
function listed(names) {
  const counts = new Map(names.map((name) => [name, names.filter((one) => one === name).length]));
  return [...counts].map(([name, count]) => (count > 1 ? `${count} × ${name}` : name)).join(", ");
}

/** The workflow as it stands; what was changed before is a step of undo of its own. */
function current() {
  captureState();
  return new Workflow(serialized());
}

/**
 * Loads an edited workflow the way a redo does: in the same tab and view, without dialogs, one step of undo.
 * @param {Workflow} workflow
 */
async function show(workflow) {
  workflow.close();
  const values = valuesByNode();
  const history = changeTracker();
  history.redoQueue.splice(0, Infinity, workflow.data);
  await history.redo();
  restoreValues(values);
  void settle(history);
}

/**
 * ComfyUI fills in and lays out what it has loaded, for some frames. That is no change by the user, so no step of undo.
 * @param {any} history
 */
async function settle(history) {
  for (let i = 0, last = ""; i < 20 && history === changeTracker(); i++) {
    const state = serialized();
    history.activeState = state;
    await new Promise((resolve) => setTimeout(resolve, 50));
    if (last === (last = JSON.stringify(state)) && i > 3) return;
  }
}
