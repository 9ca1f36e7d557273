// @ts-check
/** A run's report, laid out: what was gained, what to expect of the picture, what to know. */
import { amount, duration, html, times } from "./dom.js";
import { errorWords } from "./forecast.js";
import { CHANGED, meaning } from "./quality.js";
import { capital, noteText, translate } from "./words.js";

/**
 * @typedef {object} Report
 * @property {number} calls
 * @property {number} [steps]
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
  const parts = [html("div", { class: "erta-headline" }, headline(report))];
  const [median, worst] = report.predicted_error ?? [];
  if (median > 0 && !(median >= CHANGED && warningsIn(report).length)) parts.push(html("div", {}, `${capital(meaning(median))} (${errorWords(median, worst)})`));
  return [...parts, html("div", { class: "erta-facts" }, facts(report)), ...noteList(report.notes)];
}

/** One list, or nothing for no notes. @param {import("./words.js").Note[]} [notes] */
export function noteList(notes = []) {
  const mark = (/** @type {string} */ level) => (level === "warning" ? "erta-warning" : undefined);
  const ordered = [...warningsIn({ notes }), ...notes.filter((note) => note.level !== "warning")];
  const items = ordered.map((note) => html("li", { class: mark(note.level) }, noteText(note)));
  return items.length ? [html("ul", { class: "erta-notes" }, ...items)] : [];
}

/** @param {{ notes?: import("./words.js").Note[] }} content */
export function warningsIn({ notes = [] }) {
  return notes.filter((note) => note.level === "warning");
}

/** How a run went, in a word, for a node that shows no more. @param {Report} report */
export function gainOf(report) {
  if (warningsIn(report).length) return "⚠";
  return report.reused ? times(report.speed_up) : translate("full");
}

/** Most samplers call the model once per step. @param {{ computed: number, calls: number, steps?: number }} report */
export function countOf({ computed, calls, steps = calls }) {
  const values = { computed, all: calls };
  if (calls !== steps) return translate("{computed} of {all} model calls computed", values);
  return translate("{computed} of {all} steps computed", values);
}

/** @param {Report} report */
function headline(report) {
  if (report.notes?.some((note) => note.code === "recorded")) return `${translate("Measured")}: ${countOf(report)}`;
  if (!report.reused || report.speed_up <= 1.005) return `${translate("No faster")}: ${countOf(report)}`;
  return `${translate("{gain} faster", { gain: times(report.speed_up) })}: ${countOf(report)}`;
}

/** @param {Report} report */
function facts(report) {
  const found = [duration(report.seconds)];
  const per = (/** @type {number} */ seconds, /** @type {number} */ count) => ({ time: duration(seconds / count) });
  if (report.computed) found.push(translate("{time} per computed step", per(report.seconds_computed, report.computed)));
  if (report.reused) {
    found.push(translate("{time} per reused step", per(report.seconds_reused, report.reused)));
    found.push(translate("cache {size}", { size: amount(report.cache_bytes) }));
  }
  return found.join(" · ");
}
