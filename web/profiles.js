// @ts-check
/** The store of profiles, from the node that loads one: export, import, rename, delete. By our own routes. */
import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { allNodes, rootGraph, widgetOf } from "./graph.js";

/** @typedef {import("./graph.js").Node} Node */

const ENDING = ".safetensors";
const MAX_BYTES = 8 * 2 ** 20;
const CONFLICT = 409;

/** @type {[string, (node: Node) => Promise<void>][]} */
const ACTIONS = [
  ["Export", exportProfile],
  ["Import…", importProfile],
  ["Rename…", renameProfile],
  ["Delete…", deleteProfile],
];

/** @param {Node} node */
export function profileMenu(node) {
  return ACTIONS.map(([name, act]) => ({ content: `ERTA profile: ${name}`, callback: () => void attempt(act, node) }));
}

/** @param {() => Node} node */
export function profileButtons(node) {
  return ACTIONS.map(([name, act]) => {
    const button = html("button", { type: "button", title: `${name.replace("…", "")} a profile` }, name);
    button.addEventListener("click", () => void attempt(act, node()));
    return button;
  });
}

/** @param {(node: Node) => Promise<void>} act @param {Node} node */
async function attempt(act, node) {
  try {
    await act(node);
  } catch (problem) {
    toast("error", problem instanceof Error ? problem.message : String(problem));
  }
}

/** @param {Node} node */
async function exportProfile(node) {
  const name = chosen(node);
  const url = URL.createObjectURL(await (await ask("GET", name)).blob());
  html("a", { href: url, download: name + ENDING }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun by then
}

/** @param {Node} node */
async function importProfile(node) {
  const file = await pickFile();
  if (!file) return;
  // The server looks at the rest; more than this it would not even take in.
  if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than a profile can be (${MAX_BYTES / 2 ** 20} MB).`);
  const name = file.name.endsWith(ENDING) ? file.name.slice(0, -ENDING.length) : file.name;
  const response = await ask("POST", name, "", file, [CONFLICT]);
  if (response.status === CONFLICT) {
    const message = `There is a profile ${name} already. Replace it?`;
    if (!(await app.extensionManager.dialog.confirm({ title: "Import ERTA profile", message, type: "overwrite" }))) return;
    await ask("POST", name, "?overwrite=true", file);
  }
  await choose([node], name);
  toast("success", `Profile ${name} is ready.`);
}

/** @param {Node} node */
async function renameProfile(node) {
  const name = chosen(node);
  const asked = { title: "Rename ERTA profile", message: `New name for ${name}`, defaultValue: name };
  const target = await app.extensionManager.dialog.prompt(asked);
  if (target == null || target === name) return;
  await ask("POST", name, `/move?to=${encodeURIComponent(target)}`);
  const loading = allNodes().filter((one) => one.comfyClass === node.comfyClass && widgetOf(one, "name")?.value === name);
  await choose(loading, target);
  toast("success", `Profile ${name} is called ${target} now.`);
}

/** @param {Node} node */
async function deleteProfile(node) {
  const name = chosen(node);
  const message = `Delete the profile ${name} for good?`;
  if (!(await app.extensionManager.dialog.confirm({ title: "Delete ERTA profile", message, type: "delete" }))) return;
  await ask("DELETE", name);
  await choose([node], undefined);
  toast("success", `Profile ${name} is gone.`);
}

/**
 * Asks the server about a profile. An answer that is no success becomes an error with the server's words.
 * @param {string} method @param {string} name @param {string} [more] @param {File} [body] @param {number[]} [expected]
 * @returns {Promise<Response>}
 */
async function ask(method, name, more = "", body = undefined, expected = []) {
  const path = `/ertacache/profiles/${encodeURIComponent(name)}${more}`;
  const response = await app.api.fetchApi(path, { method, body });
  if (response.ok || expected.includes(response.status)) return response;
  throw new Error(await response.text());
}

/** Shows the store as it is now. @param {Node[]} nodes @param {string | undefined} name none: the first there is */
async function choose(nodes, name) {
  await app.refreshComboInNodes();
  for (const node of nodes) {
    const widget = widgetOf(node, "name");
    if (!widget) continue;
    widget.value = name ?? widget.options.values?.[0] ?? "none";
    widget.callback?.(widget.value);
  }
  rootGraph()?.setDirtyCanvas?.(true, true);
}

/** @param {Node} node */
function chosen(node) {
  return String(widgetOf(node, "name")?.value ?? "");
}

/** @returns {Promise<File | undefined>} */
function pickFile() {
  return new Promise((resolve) => {
    const input = html("input", { type: "file", accept: ENDING });
    input.addEventListener("change", () => resolve(input.files?.[0]));
    input.addEventListener("cancel", () => resolve(undefined));
    input.click();
  });
}

/** @param {"success" | "warn" | "error"} severity @param {string} detail */
export function toast(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "ERTACache", detail, life: severity === "success" ? 4000 : 10_000 });
}
