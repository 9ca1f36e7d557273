// @ts-check
/** What the pack adds to ComfyUI's front end: a panel on each of its nodes, two settings, a menu. */
import { app } from "../../scripts/app.js";
import { carry } from "./carry.js";
import { html } from "./dom.js";
import { after, allNodes, nodeAt, widgetOf } from "./graph.js";
import { recall, remember } from "./memory.js";
import { hasPanel, Panel, panelOf } from "./panel.js";
import { profileButtons, profileMenu, toast } from "./profiles.js";
import { loadWords, noteText } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {import("./panel.js").Output} Output */

const LIVE = "ERTACache.LiveStrip";
const TOASTS = "ERTACache.Toasts";

/** @type {WeakMap<Node, (plan: string | undefined) => void>} what fills the widget of the plan */
const fills = new WeakMap();

app.registerExtension({
  name: "ertacache.nodes",

  settings: [
    {
      id: LIVE,
      name: "Show the plan strip live, while a run goes on",
      type: "boolean",
      defaultValue: true,
      category: ["ERTACache", "Nodes", "LiveStrip"],
    },
    {
      id: TOASTS,
      name: "Notify when a run's report has a warning",
      type: "boolean",
      defaultValue: true,
      category: ["ERTACache", "Nodes", "Toasts"],
    },
  ],

  init() {
    document.head.append(html("link", { rel: "stylesheet", href: new URL("./ertacache.css", import.meta.url) }));
  },

  async setup() {
    const listen = (/** @type {string} */ name, /** @type {(detail: any) => void} */ hear) =>
      app.api.addEventListener(`ertacache.${name}`, (/** @type {any} */ { detail }) => hear(detail));
    const strip = (/** @type {string} */ id) => (isOn(LIVE) ? panelOf(nodeAt(id))?.strip : undefined);
    listen("plan", ({ node, compute, sigmas }) => strip(node)?.plan(compute ?? "", sigmas));
    listen("step", ({ node, kinds }) => strip(node)?.fill(kinds ?? ""));
    listen("report", ({ node, report }) => ran(nodeAt(node), { text: [report.text], erta: [report] }));
    await loadWords();
  },

  /** @param {Node} node */
  nodeCreated(node) {
    if (!hasPanel(node.comfyClass)) return;
    new Panel(node, node.comfyClass === "ERTALoadProfile" ? profileButtons(() => node) : []);
    const plan = widgetOf(node, "plan");
    if (plan) fills.set(node, carry(plan));
    after(node, "onExecuted", (/** @type {Output | null} */ output) => output && ran(node, output));
  },

  /** Nodes are built again when a page, a tab or an earlier state is loaded. */
  afterConfigureGraph() {
    for (const node of allNodes()) {
      const panel = panelOf(node);
      const kept = panel && recall(node);
      if (kept?.output) panel?.show(kept.output, kept.ran);
      else panel?.refresh();
      panel?.takePlace();
    }
  },

  /** Outputs come back from ComfyUI's own memory of them. @param {Record<string, Output>} outputs */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const panel = panelOf(nodeAt(id));
      if (panel && (output?.erta || output?.text)) panel.show(output, panel.ran);
    }
  },

  /** @param {Node} node */
  getNodeMenuItems(node) {
    return node.comfyClass === "ERTALoadProfile" ? profileMenu(node) : [];
  },
});

/** @param {string} id */
function isOn(id) {
  return app.extensionManager.setting.get(id) !== false;
}

/** A run's output has come, from the sampler or from ComfyUI's cache. @param {Node | undefined} node @param {Output} output */
function ran(node, output) {
  const panel = panelOf(node);
  if (!node || !panel || !(output.erta || output.text)) return;
  const news = panel.news(output);
  panel.show(output);
  remember(node, { output, ran: panel.ran });
  fills.get(node)?.(output.erta?.[output.erta.length - 1]?.plan);
  if (isOn(TOASTS)) for (const note of news) toast("warn", noteText(note));
}
