// @ts-check
/**
 * Which workflow a run belongs to. An event names a node, and all workflows of a page have the same node ids: what comes
 * in while another workflow is shown waits until its own is shown again.
 */
import { app } from "../../scripts/app.js";
import { rootGraph } from "./graph.js";

/** @typedef {{ prompt: string, workflow?: string }} Run as an event names it; the workflow where the server knows it */
/** @typedef {import("./again.js").Prompt} Prompt */
/** @typedef {{ tab?: WeakRef<object>, workflow?: string, asked?: Prompt }} Origin a duplicate has its original's own id */

const ROOM = 100; // reports that wait

/** @returns {object | undefined} */
const shownTab = () => app.extensionManager.workflow?.activeWorkflow ?? undefined;

export class Runs {
  constructor() {
    /** @type {Map<string, Origin>} by prompt; a run from before the page was loaded is not among them */
    this.origins = new Map();
    /** @type {Promise<unknown>} the server's answer to what was queued last: events may be faster */
    this.answered = Promise.resolve();
    /** @type {[Run, () => void][]} */
    this.waiting = [];
  }

  /** Notes what is queued from now on. @param {any} api the front end's */
  follow(api) {
    const queue = api.queuePrompt;
    api.queuePrompt = (/** @type {any[]} */ ...args) => {
      const tab = shownTab();
      const { workflow, output: asked } = args[1] ?? {};
      const origin = { tab: tab && new WeakRef(tab), workflow: workflow?.id ?? rootGraph()?.id, asked };
      const answer = queue.apply(api, args);
      const note = (/** @type {any} */ { prompt_id: prompt }) => void this.origins.set(prompt, origin);
      this.answered = answer.then(note).catch(() => {});
      return answer;
    };
  }

  /** What was queued; only once, to keep little. @param {string} prompt */
  takeAsked(prompt) {
    const origin = this.origins.get(prompt);
    const asked = origin?.asked;
    delete origin?.asked;
    return asked;
  }

  /** @param {Run} run */
  async isShown({ prompt, workflow }) {
    await this.answered;
    const origin = this.origins.get(prompt) ?? { workflow };
    return origin.workflow === rootGraph()?.id && (!origin.tab || origin.tab.deref() === shownTab());
  }

  /** Does it now, or when the run's workflow is shown again. @param {Run} run @param {() => void} act */
  async whenShown(run, act) {
    if (await this.isShown(run)) act();
    else this.waiting = [...this.waiting, /** @type {[Run, () => void]} */ ([run, act])].slice(-ROOM);
  }

  /** Another workflow is shown. */
  catchUp() {
    const waiting = this.waiting;
    this.waiting = [];
    for (const [run, act] of waiting) void this.whenShown(run, act);
  }
}
