// @ts-check
/** What a node showed, where ComfyUI serves its result from the cache: it is not sent again, but the history has it. */
import { app } from "../../scripts/app.js";

/** @typedef {Record<string, { class_type: string, inputs: Record<string, any> }>} Prompt nodes by id */

const LOOKED_THROUGH = 50; // runs, the newest

/**
 * Of the last run in which the node, and all that it depends on, was as in this prompt.
 * @param {Prompt} prompt @param {string} id
 */
export async function shownBefore(prompt, id) {
  const response = await app.api.fetchApi(`/history?max_items=${LOOKED_THROUGH}`);
  /** @type {{ prompt: [number, string, Prompt], outputs: Record<string, any> }[]} */
  const runs = Object.values(parsed(await response.text()));
  const ran = runs.reverse().find((run) => run.outputs[id]?.erta && isSame(prompt, run.prompt[2], id));
  return ran?.outputs[id];
}

/**
 * JSON as Python writes it: with NaN and Infinity, which a browser's parser refuses. They become null.
 * @param {string} text
 */
export function parsed(text) {
  const plain = text.replace(/"(?:[^"\\]|\\.)*"|NaN|-?Infinity/g, (found) => (found[0] === '"' ? found : "null"));
  return JSON.parse(plain);
}

/**
 * @param {Prompt} one @param {Prompt} other @param {string} id in the one @param {string} otherId in the other
 * @param {Set<string>} seen pairs that are compared already
 * @returns {boolean}
 */
export function isSame(one, other, id, otherId = id, seen = new Set()) {
  const pair = `${id}/${otherId}`;
  if (seen.has(pair)) return true;
  seen.add(pair);
  const [node, otherNode] = [one[id], other[otherId]];
  if (!node || node.class_type !== otherNode?.class_type) return false;
  return Object.keys({ ...node.inputs, ...otherNode.inputs }).every((name) => {
    const [value, otherValue] = [node.inputs[name], otherNode.inputs[name]];
    if (!isLink(value, one) || !isLink(otherValue, other)) return JSON.stringify(value) === JSON.stringify(otherValue);
    return value[1] === otherValue[1] && isSame(one, other, value[0], otherValue[0], seen);
  });
}

/** @param {any} value @param {Prompt} prompt */
function isLink(value, prompt) {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && value[0] in prompt;
}
