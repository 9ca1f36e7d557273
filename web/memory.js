// @ts-check
/**
 * What nodes last showed, for as long as the browser's tab lives: ComfyUI forgets outputs when the page is reloaded,
 * and an undo builds the nodes again. The workflow itself stays free of it.
 */
import { addressOf } from "./graph.js";

/** @typedef {import("./graph.js").Node} Node */

const PREFIX = "ertacache:";
const ROOM = 40; // nodes: at most some 20 KB each

/** @param {Node} node @param {unknown} content */
export function remember(node, content) {
  const address = addressOf(node);
  if (!address) return;
  try {
    sessionStorage.removeItem(PREFIX + address);
    const ours = Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));
    for (const key of ours.slice(0, Math.max(ours.length - ROOM + 1, 0))) sessionStorage.removeItem(key);
    sessionStorage.setItem(PREFIX + address, JSON.stringify(content));
  } catch {
    // Storage is full or switched off: then nothing is redrawn after a reload, and that is all.
  }
}

/** @param {Node} node @returns {any} */
export function recall(node) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + addressOf(node)) ?? "null");
  } catch {
    return null;
  }
}
