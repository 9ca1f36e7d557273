// @ts-check
/** The store of profiles, from the node that loads one: export, import, rename, delete. By ComfyUI's own user data API. */
import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { allNodes, rootGraph, widgetOf } from "./graph.js";

/** @typedef {import("./graph.js").Node} Node */

const ENDING = ".safetensors";
const FORMAT = "ertacache.profile";
const MAX_BYTES = 8 * 2 ** 20;
const MAX_HEADER = 2 ** 16;
const CONFLICT = 409;
const NOT_FOUND = 404;

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
  const response = await app.api.getUserData(pathOf(name));
  if (!response.ok) throw new Error(`${name} is not among your own profiles on this server.`);
  const url = URL.createObjectURL(await response.blob());
  html("a", { href: url, download: name + ENDING }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun by then
}

/** @param {Node} node */
async function importProfile(node) {
  const file = await pickFile();
  if (!file) return;
  const name = checkedName(file.name.endsWith(ENDING) ? file.name.slice(0, -ENDING.length) : file.name);
  await checkProfile(file);
  let response = await store(name, file, false);
  if (response.status === CONFLICT) {
    const message = `There is a profile ${name} already. Replace it?`;
    if (!(await app.extensionManager.dialog.confirm({ title: "Import ERTA profile", message, type: "overwrite" }))) return;
    response = await store(name, file, true);
  }
  if (!response.ok) throw new Error(`The server did not keep the profile (${response.status}).`);
  await choose([node], name);
  toast("success", `Profile ${name} is ready.`);
}

/** @param {Node} node */
async function renameProfile(node) {
  const name = chosen(node);
  const asked = { title: "Rename ERTA profile", message: `New name for ${name}`, defaultValue: name };
  const newName = await app.extensionManager.dialog.prompt(asked);
  if (newName == null || newName === name) return;
  const target = checkedName(newName);
  const response = await app.api.moveUserData(pathOf(name), pathOf(target), { overwrite: false });
  if (response.status === CONFLICT) throw new Error(`There is a profile ${target} already.`);
  if (response.status === NOT_FOUND) throw new Error(`${name} is not among your own profiles on this server.`);
  if (!response.ok) throw new Error(`The server did not rename the profile (${response.status}).`);
  const loading = allNodes().filter((one) => one.comfyClass === node.comfyClass && widgetOf(one, "name")?.value === name);
  await choose(loading, target);
  toast("success", `Profile ${name} is called ${target} now.`);
}

/** @param {Node} node */
async function deleteProfile(node) {
  const name = chosen(node);
  const message = `Delete the profile ${name} for good?`;
  if (!(await app.extensionManager.dialog.confirm({ title: "Delete ERTA profile", message, type: "delete" }))) return;
  const response = await app.api.deleteUserData(pathOf(name));
  if (response.status === NOT_FOUND) throw new Error(`${name} is not among your own profiles on this server.`);
  if (!response.ok) throw new Error(`The server did not delete the profile (${response.status}).`);
  await choose([node], undefined);
  toast("success", `Profile ${name} is gone.`);
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
  return checkedName(String(widgetOf(node, "name")?.value ?? ""));
}

/** @param {string} name */
function pathOf(name) {
  return `ertacache/${name}${ENDING}`;
}

/** @param {string} name @param {File} file @param {boolean} overwrite @returns {Promise<Response>} */
function store(name, file, overwrite) {
  const options = { overwrite, stringify: false, throwOnError: false, full_info: false };
  return app.api.storeUserData(pathOf(name), file, options);
}

/** The rules of the Python side, said before anything is sent. @param {string} name */
export function checkedName(name) {
  const device = /^(con|prn|aux|nul|com\d|lpt\d)$/i.test(name.split(".")[0]);
  const fits = /^[A-Za-z0-9._-]{1,64}$/.test(name) && !name.startsWith(".") && !name.endsWith(".");
  if (fits && !device) return name;
  const rule = device ? "Windows keeps it for a device" : "use 1 to 64 letters, digits, dots, dashes or underscores";
  throw new Error(`“${name.slice(0, 64)}” cannot name a profile: ${rule}.`);
}

/** Whether a file calls itself a profile; the server reads it with more care when it is used. @param {File} file */
export async function checkProfile(file) {
  const refuse = () => new Error(`${file.name} is not an ERTA profile.`);
  if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than a profile can be (${MAX_BYTES / 2 ** 20} MB).`);
  if (file.size < 8) throw refuse();
  const length = new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
  if (length > BigInt(Math.min(MAX_HEADER, file.size - 8))) throw refuse();
  let header;
  try {
    header = JSON.parse(await file.slice(8, 8 + Number(length)).text());
  } catch {
    throw refuse();
  }
  if (header?.__metadata__?.format !== FORMAT) throw refuse();
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
