// @ts-check
/** What a run is doing, in one line: what is computed, which run it is of how many, and the time that is left. */
import { duration } from "./dom.js";
import { countOf } from "./report.js";
import { computedIn } from "./strip.js";
import { translate } from "./words.js";

/**
 * @typedef {object} Begun what the server says before the first model call
 * @property {string} compute
 * @property {number[]} [sigmas]
 * @property {number} [left] model calls that will be computed, in all runs
 * @property {boolean} [recording]
 * @property {number} [run]
 * @property {number} [runs] that ERTA Profile records, 0 of other nodes
 */

export class Progress {
  /** @param {Begun} begun @param {number} [steps] of the node */
  constructor(begun, steps) {
    this.begun = begun;
    this.steps = steps;
    this.since = performance.now();
    this.left = begun.left ?? 0;
    this.computed = 0;
  }

  /** @param {{ kinds?: string, left?: number }} step */
  step({ kinds = "", left = 0 }) {
    this.left = left;
    this.computed = computedIn(kinds);
  }

  words() {
    const seconds = this.computed ? (this.left * (performance.now() - this.since)) / this.computed / 1000 : 0;
    const time = seconds >= 1 ? translate("about {time} left", { time: duration(Math.round(seconds)) }) : "";
    return [this.what(), time].filter(Boolean).join(" · ");
  }

  what() {
    const { compute, recording, run = 0, runs = 0, left = 0 } = this.begun;
    if (runs && !recording) return translate("Run 1 once more at 2x, to see how errors grow");
    const more = left > (runs - run + 1) * compute.length;
    if (runs && more) return translate("Measuring: run {run} of {runs}, then one at 2x", { run, runs });
    if (runs) return translate("Measuring: run {run} of {runs}", { run, runs });
    if (recording) return translate("Measuring this model: every step is computed this once");
    const calls = compute.length;
    return countOf({ calls, steps: this.steps ?? calls, computed: computedIn(compute) });
  }
}
