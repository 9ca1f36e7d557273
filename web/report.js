// @ts-check
/** A run's report, laid out: what was gained, what it rests on, what to know. */
import { amount, duration, html, percent, times } from "./dom.js";
import { noteText, translate } from "./words.js";

/**
 * @typedef {object} Report
 * @property {number} calls
 * @property {number} computed
 * @property {number} reused
 * @property {number} seconds
 * @property {number} seconds_computed
 * @property {number} seconds_reused
 * @property {number} cache_bytes
 * @property {import("./words.js").Note[]} notes
 * @property {boolean} complete
 * @property {number[]} predicted_error
 * @property {string} [plan]
 * @property {string} compute
 * @property {number[]} sigmas
 * @property {number} speed_up
 * @property {string} text
 * @property {import("./forecast.js").Point[]} [curve]
 */

/** @param {Report} report @returns {HTMLElement[]} */
export function reportParts(report) {
  /** @type {HTMLElement[]} */
  const parts = [html("div", { class: "erta-headline" }, headline(report)), html("div", {}, facts(report))];
  const [median, worst] = report.predicted_error ?? [];
  if (median > 0) {
    const error = { median: percent(median), worst: percent(worst) };
    const words = translate("Predicted error {median} of the latent, {worst} in the worst recorded run.", error);
    parts.push(html("div", {}, words));
  }
  return [...parts, ...noteList(report.notes)];
}

/** One list, or nothing for no notes. @param {import("./words.js").Note[]} [notes] */
export function noteList(notes = []) {
  const mark = (/** @type {string} */ level) => (level === "warning" ? "erta-warning" : undefined);
  const items = notes.map((note) => html("li", { class: mark(note.level) }, noteText(note)));
  return items.length ? [html("ul", { class: "erta-notes" }, ...items)] : [];
}

/** @param {{ notes?: import("./words.js").Note[] }} content */
export function warningsIn({ notes = [] }) {
  return notes.filter((note) => note.level === "warning");
}

/** @param {Report} report */
function headline({ computed, calls, reused, speed_up: gain }) {
  if (!reused) return translate("All {calls} model calls computed", { calls });
  const count = { computed, calls, gain: times(gain) };
  if (gain <= 1.005) return translate("No faster, {computed} of {calls} model calls computed", count);
  return translate("{gain} faster, {computed} of {calls} model calls computed", count);
}

/** @param {Report} report */
function facts(report) {
  const found = [duration(report.seconds)];
  const per = (/** @type {number} */ seconds, /** @type {number} */ count) => ({ time: duration(seconds / count) });
  if (report.computed) found.push(translate("{time} per computed call", per(report.seconds_computed, report.computed)));
  if (report.reused) {
    found.push(translate("{time} per reused call", per(report.seconds_reused, report.reused)));
    found.push(translate("cache {size}", { size: amount(report.cache_bytes) }));
  }
  return found.join(" · ");
}
