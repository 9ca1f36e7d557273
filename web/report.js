// @ts-check
/** A run's report, laid out: what was gained, what it rests on, what to know. */
import { amount, duration, html, percent, times } from "./dom.js";

/**
 * @typedef {object} Report
 * @property {number} evaluations
 * @property {number} computed
 * @property {number} reused
 * @property {number} seconds
 * @property {number} seconds_computed
 * @property {number} seconds_reused
 * @property {number} cache_bytes
 * @property {string[]} notes
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
    const error = `Predicted error ${percent(median)} of the latent, ${percent(worst)} in the worst recorded run.`;
    parts.push(html("div", {}, error));
  }
  if (report.notes?.length) {
    const items = report.notes.map((note) => html("li", {}, capital(note)));
    parts.push(html("ul", { class: report.complete === false ? "erta-notes erta-warning" : "erta-notes" }, ...items));
  }
  return parts;
}

/** @param {Report} report */
function headline({ computed, evaluations, reused, speed_up: gain }) {
  if (!reused) return `All ${evaluations} evaluations computed`;
  return `${gain > 1.005 ? `${times(gain)} faster` : "No faster"}, ${computed} of ${evaluations} evaluations computed`;
}

/** @param {Report} report */
function facts(report) {
  const found = [duration(report.seconds)];
  if (report.computed) found.push(`${duration(report.seconds_computed / report.computed)} per computed one`);
  if (report.reused) {
    found.push(`${duration(report.seconds_reused / report.reused)} per reused one`);
    found.push(`cache ${amount(report.cache_bytes)}`);
  }
  return found.join(" · ");
}

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Whether somebody should know that the run did not go as wished. @param {Report} report */
export function needsAttention(report) {
  return report.complete === false || (report.notes ?? []).some((note) => /not fit|is not used|nothing recorded/.test(note));
}
