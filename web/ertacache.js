// @ts-check
/** What the pack adds to ComfyUI's front end: a panel on each of its nodes, two settings, a menu. */
import { app } from "../../scripts/app.js";
import { shownBefore } from "./again.js";
import { carry } from "./carry.js";
import { html } from "./dom.js";
import { after, allNodes, nodeAt, quietly, widgetOf } from "./graph.js";
import { recall, remember } from "./memory.js";
import { hasPanel, Panel, panelOf, refreshAll } from "./panel.js";
import { profileButtons, profileMenu, toast } from "./profiles.js";
import { Runs } from "./runs.js";
import { canvasItems, commands, menuCommands, nodeItems, toolboxCommands } from "./speedup_menu.js";
import { loadWords, noteText, translate } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {import("./panel.js").Output} Output */
/** @typedef {import("./runs.js").Run} Run */

const LIVE = "ERTACache.LiveStrip";
const TOASTS = "ERTACache.Toasts";
const COLOURS = { ERTA_PROFILE: "#5fa8a0", ERTA_OPTIONS: "#b58fc9" }; // of the slots, in ertacache.css for Nodes 2.0

/** @type {WeakMap<Node, (plan: string | undefined) => void>} what fills the widget of the plan */
const fills = new WeakMap();

const runs = new Runs();

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

  commands,
  menuCommands,

  init() {
    document.head.append(html("link", { rel: "stylesheet", href: new URL("./ertacache.css", import.meta.url) }));
  },

  async setup() {
    runs.follow(app.api);
    const listen = (/** @type {string} */ name, /** @type {(detail: any) => void} */ hear) =>
      app.api.addEventListener(name, (/** @type {any} */ { detail }) => hear(detail));
    const live = async (/** @type {any} */ detail) =>
      isOn(LIVE) && (await runs.isShown(detail)) ? panelOf(nodeAt(detail.node)) : undefined;
    listen("ertacache.plan", async (detail) => {
      const panel = await live(detail);
      if (panel) quietly(() => panel.begin(detail));
    });
    listen("ertacache.step", async (detail) => (await live(detail))?.step(detail));
    listen("ertacache.refused", (detail) =>
      runs.whenShown(detail, () => quietly(() => panelOf(nodeAt(detail.node))?.stopped(detail.words, true))),
    );
    app.canvas?.canvas?.addEventListener("litegraph:set-graph", () => refreshAll());
    listen("execution_interrupted", () => stopAll(translate("Cancelled.")));
    listen("execution_error", () => stopAll(translate("Stopped by an error.")));
    const hear = (/** @type {Run} */ run, /** @type {string} */ node, /** @type {Output} */ output) =>
      runs.whenShown(run, () => ran(nodeAt(node), output));
    listen("ertacache.report", ({ node, report, ...run }) => hear(run, node, { text: [report.text], erta: [report] }));
    // Not the nodes' onExecuted: it is called in the workflow that is shown, whichever that is.
    listen("executed", ({ node, display_node: shown, output, prompt_id: prompt }) => {
      if (output?.erta) void hear({ prompt }, shown ?? node, output);
    });
    listen("execution_cached", ({ nodes, prompt_id: prompt }) =>
      runs.whenShown({ prompt }, () => void showAgain(nodes, runs.takeAsked(prompt))),
    );
    await loadWords();
  },

  /** @param {Node} node */
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ERTA")) return;
    colourSlots();
    if (node.comfyClass === "ERTAOptions") for (const one of node.widgets ?? []) after(one, "callback", refreshAll);
    if (!hasPanel(node.comfyClass)) return;
    const plan = widgetOf(node, "plan");
    if (plan) fills.set(node, carry(plan));
    new Panel(node, node.comfyClass === "ERTALoadProfile" ? profileButtons(() => node) : []);
    node.setSize([node.size[0], node.computeSize()[1]]); // a file has its own
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
    refreshAll();
  },

  /** Outputs come back from ComfyUI's own memory of them, with a workflow. @param {Record<string, Output>} outputs */
  onNodeOutputsUpdated(outputs) {
    runs.catchUp();
    for (const [id, output] of Object.entries(outputs)) {
      const panel = panelOf(nodeAt(id));
      if (panel && (output?.erta || output?.text)) panel.show(output, panel.ran);
    }
  },

  /** @param {Node} node */
  getNodeMenuItems(node) {
    return node.comfyClass === "ERTALoadProfile" ? profileMenu(node) : nodeItems(node);
  },

  getCanvasMenuItems: canvasItems,
  getSelectionToolboxCommands: toolboxCommands,
});

/** @param {string} id */
function isOn(id) {
  return app.extensionManager.setting.get(id) !== false;
}

/**
 * A page that was opened after the run knows nothing of it yet.
 * @param {string[]} ids of nodes whose results come from ComfyUI's cache
 * @param {import("./again.js").Prompt} [prompt]
 */
async function showAgain(ids, prompt) {
  const empty = (/** @type {string} */ id) => fills.has(/** @type {any} */ (nodeAt(id))) && !panelOf(nodeAt(id))?.output;
  for (const id of prompt ? ids.filter(empty) : []) {
    const output = await shownBefore(/** @type {any} */ (prompt), id);
    if (output && empty(id)) ran(nodeAt(id), output);
  }
}

/** A run's output has come, from the sampler or from ComfyUI's cache. @param {Node | undefined} node @param {Output} output */
function ran(node, output) {
  const panel = panelOf(node);
  if (!node || !panel || !(output.erta || output.text)) return;
  const news = panel.news(output);
  quietly(() => {
    panel.show(output);
    fills.get(node)?.(output.erta?.[output.erta.length - 1]?.plan);
  });
  refreshAll(); // others may tell of it
  remember(node, { output, ran: panel.ran });
  if (isOn(TOASTS)) for (const note of news) toast("warn", noteText(note));
}

/** Of every run that goes on. @param {string} words */
function stopAll(words) {
  const going = allNodes().map(panelOf).filter((panel) => panel?.progress);
  if (going.length) quietly(() => going.forEach((panel) => panel?.stopped(words)));
}

/** Before each node: a colour palette that is loaded takes back what it does not know. */
function colourSlots() {
  const { LGraphCanvas } = /** @type {any} */ (globalThis);
  for (const colours of [LGraphCanvas?.link_type_colors, app.canvas?.default_connection_color_byType]) {
    if (colours) Object.assign(colours, COLOURS);
  }
}
