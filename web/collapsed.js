// @ts-check
/**
 * How a run went, on a collapsed node. The classic renderer draws badges on it; Nodes 2.0 leaves out all that is inside,
 * so that there a rule for each node writes it on the frame.
 */
import { app } from "../../scripts/app.js";
import { html } from "./dom.js";

/** @typedef {import("./graph.js").Node} Node */

const sheet = html("style");

/** @param {Node} node @param {() => string} text "" for nothing to tell */
export function addBadge(node, text) {
  const badge = () => new /** @type {any} */ (globalThis).LGraphBadge({ text: node.flags?.collapsed ? text() : "" });
  node.badges?.push(badge);
}

/** Of the nodes in the graph that is shown. @param {(node: Node) => string} text */
export function tellCollapsed(text) {
  if (!sheet.isConnected) document.head.append(sheet);
  /** @type {Node[]} */
  const nodes = app.canvas?.graph?.nodes ?? [];
  const told = nodes.map((node) => ({ id: node.id, words: text(node) })).filter(({ words }) => words);
  sheet.textContent = told
    .map(({ id, words }) => {
      const frame = `.lg-node[data-node-id="${CSS.escape(String(id))}"]:not(:has(.erta-panel))`;
      return `${frame}::after { content: ${JSON.stringify(words)}; }`;
    })
    .join("\n");
}
