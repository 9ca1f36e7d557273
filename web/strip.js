// @ts-check
/**
 * The plan strip: one cell per model call. Computed ones are tall, reused ones low and of another colour; planned ones
 * are outlined, done ones filled.
 */
import { svg } from "./dom.js";
import { translate } from "./words.js";

const CELL = 10; // units of the drawing, which is stretched to the width there is
const TALL = 100;
const LOW = 42;

/** One letter per model call: "1" computed, "0" reused. @param {string} kinds */
export const computedIn = (kinds) => kinds.split("1").length - 1;

export class Strip {
  constructor() {
    this.element = svg("svg", { class: "erta-strip", role: "img", preserveAspectRatio: "none", hidden: "" });
    /** @type {SVGRectElement[]} */
    this.cells = [];
    this.planned = "";
    this.done = "";
    /** @type {number[]} */
    this.sigmas = [];
  }

  /** What is planned, nothing of it done yet. @param {string} compute @param {number[]} [sigmas] */
  plan(compute, sigmas = []) {
    this.planned = compute;
    this.sigmas = sigmas;
    this.done = "";
    this.cells = Array.from(compute, (_, i) => svg("rect", { x: i * CELL + 1, width: CELL - 2 }, svg("title")));
    this.element.setAttribute("viewBox", `0 0 ${Math.max(compute.length, 1) * CELL} ${TALL}`);
    this.element.toggleAttribute("hidden", !compute);
    this.element.replaceChildren(...this.cells);
    this.cells.forEach((_, i) => this.draw(i));
    this.describe();
  }

  /** What was really done so far. @param {string} kinds */
  fill(kinds) {
    if (kinds.length > this.cells.length) this.plan(kinds, this.sigmas); // more than planned, or nothing was planned
    const before = this.done;
    this.done = kinds;
    for (let i = 0; i < this.cells.length; i++) if (before[i] !== kinds[i]) this.draw(i);
    this.describe();
  }

  /** @param {string} compute @param {number[]} [sigmas] */
  finished(compute, sigmas = []) {
    this.plan(compute, sigmas);
    this.fill(compute);
  }

  /** @param {number} i */
  draw(i) {
    const isDone = i < this.done.length;
    const isComputed = (isDone ? this.done : this.planned)[i] === "1";
    const height = isComputed ? TALL : LOW;
    const cell = this.cells[i];
    cell.setAttribute("class", `erta-cell ${isComputed ? "computed" : "reused"} ${isDone ? "done" : "planned"}`);
    cell.setAttribute("y", String(TALL - height));
    cell.setAttribute("height", String(height));
    const sigma = Number.isFinite(this.sigmas[i]) ? `, sigma ${Number(this.sigmas[i].toPrecision(4))}` : "";
    const place = `${i + 1} / ${this.cells.length}${sigma}`;
    const words = isComputed ? translate("{place}: computed", { place }) : translate("{place}: reused", { place });
    /** @type {SVGTitleElement} */ (cell.firstChild).textContent = words;
  }

  describe() {
    const all = this.cells.length;
    const done = this.done.length;
    const computed = computedIn(done ? this.done : this.planned);
    let words = translate("{computed} of {all} computed", { computed, all });
    if (!done) words = translate("planned: {computed} of {all} computed", { computed, all });
    else if (done < all) words = translate("{done} of {all} done, {computed} computed", { done, computed, all });
    this.element.setAttribute("aria-label", words);
  }
}
