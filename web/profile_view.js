// @ts-check
/** A profile to look at: predicted error by speed, the plan at a chosen speed, and how model calls differ in pairs. */
import { html, percent, svg, times } from "./dom.js";
import { Strip } from "./strip.js";
import { translate } from "./words.js";

/** @typedef {import("./forecast.js").Point} Point */
/** @typedef {{ name: string, measured: any, sigmas?: number[], curve?: Point[], map?: number[][] }} Content */

const HEIGHT = 128;
const MARGIN = { left: 42, right: 12, top: 20, bottom: 30 };
// Equal steps look equal, in colour, in grey and to the colour-blind.
const SHADES = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // prettier-ignore

export class ProfileView {
  /** @param {() => void} resized called when it takes more or less room */
  constructor(resized) {
    this.resized = resized;
    this.curve = svg("svg", { class: "erta-curve", role: "img" });
    this.slider = html("input", { type: "range", min: 0, step: 1, "aria-label": translate("Speed to look at") });
    this.choice = html("div", { class: "erta-choice" });
    this.strip = new Strip();
    this.map = html("canvas", { class: "erta-map", role: "img" });
    this.largest = html("span");
    this.facts = html("div", { class: "erta-facts" });
    const scale = html("div", { class: "erta-scale" }, "0", html("span", { class: "erta-gradient" }), this.largest);
    const caption = html("div", { class: "erta-caption" }, translate("How much model calls differ"));
    const drawn = html("div", { class: "erta-drawn" }, caption, this.map, scale);
    this.lower = html("details", { class: "erta-details" }, html("summary", {}, translate("Details")), this.facts, drawn);
    this.lower.addEventListener("toggle", () => this.resized());
    this.element = html("div", { class: "erta-profile", hidden: "" });
    this.element.append(this.curve, this.slider, this.choice, this.strip.element, this.lower);
    /** @type {Content | undefined} */
    this.content = undefined;
    /** @type {Point[]} */
    this.points = [];
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    this.curve.addEventListener("click", (event) => this.chooseNear(event.offsetX));
    this.map.addEventListener("pointermove", (event) => this.nameCell(event));
    this.size = new ResizeObserver(() => this.drawCurve());
    this.size.observe(this.curve);
  }

  remove() {
    this.size.disconnect();
  }

  /** @param {Content} content */
  show(content) {
    const speed = this.points[Number(this.slider.value)]?.speed ?? 2;
    this.content = content;
    this.points = content.curve ?? [];
    this.element.toggleAttribute("hidden", !this.points.length);
    this.facts.replaceChildren(...facts(content).map((line) => html("div", {}, line)));
    this.slider.max = String(Math.max(this.points.length - 1, 0));
    this.drawMap(content.map ?? []);
    this.choose(Math.max(this.points.findIndex((point) => point.speed === speed), 0));
  }

  /** @param {number} index */
  choose(index) {
    const point = this.points[index];
    if (!point) return;
    this.slider.value = String(index);
    const words = `${times(point.speed)}: ${describe(point)}`;
    this.choice.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    const falling = [...(this.content?.sigmas ?? [])].sort((one, other) => other - one);
    this.strip.plan(point.compute ?? "", falling.length === point.of ? falling : []);
    this.drawCurve();
  }

  /** @param {number} x */
  chooseNear(x) {
    const distances = this.points.map((point) => Math.abs(this.across(point.speed) - x));
    this.choose(distances.indexOf(Math.min(...distances)));
    this.slider.focus({ preventScroll: true });
  }

  /** @param {number} speed */
  across(speed) {
    const room = Math.max(this.curve.clientWidth, 200) - MARGIN.left - MARGIN.right;
    const fastest = Math.max(...this.points.map((point) => point.speed), 2);
    return MARGIN.left + (room * (speed - 1)) / (fastest - 1);
  }

  drawCurve() {
    const known = this.points.filter((point) => point.median > 0);
    const list = known.map((point) => `${times(point.speed)} ${percent(point.median)}`).join(", ");
    const title = translate("Predicted error by speed:");
    this.curve.setAttribute("aria-label", `${title} ${list || translate("not known")}`);
    this.curve.toggleAttribute("hidden", !known.length);
    if (!known.length) return;
    const values = known.flatMap((point) => [point.median, point.worst]).filter((value) => value > 0);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const ticks = ticksBetween(low, high);
    const [bottom, top] = [Math.log(Math.min(low, ticks[0])), Math.log(Math.max(high, ticks[ticks.length - 1]))];
    const room = HEIGHT - MARGIN.top - MARGIN.bottom;
    const down = (/** @type {number} */ error) => MARGIN.top + (room * (top - Math.log(error))) / (top - bottom || 1);
    this.curve.replaceChildren(
      ...this.axes(ticks, down),
      ...this.line("worst", known, down),
      ...this.line("median", known, down),
    );
  }

  /** @param {number[]} ticks @param {(error: number) => number} down */
  *axes(ticks, down) {
    const right = Math.max(this.curve.clientWidth, 200) - MARGIN.right;
    const floor = HEIGHT - MARGIN.bottom;
    const chosen = this.points[Number(this.slider.value)];
    if (chosen) {
      const x = this.across(chosen.speed);
      yield svg("line", { class: "erta-chosen", x1: x, x2: x, y1: MARGIN.top, y2: floor });
    }
    for (const error of ticks) {
      yield svg("line", { class: "erta-grid", x1: MARGIN.left, x2: right, y1: down(error), y2: down(error) });
      yield svg("text", { x: MARGIN.left - 5, y: down(error) + 3.5, "text-anchor": "end" }, percent(error));
    }
    for (const { speed } of this.points.filter(({ speed }) => speed % 0.5 === 0)) {
      yield svg("text", { x: this.across(speed), y: floor + 13, "text-anchor": "middle" }, times(speed));
    }
    yield svg("text", { x: 0, y: 10 }, translate("predicted error"));
    const median = svg("tspan", { class: "erta-key-median" }, `● ${translate("median")}`);
    const worst = svg("tspan", { class: "erta-key-worst", dx: 8 }, `◇ ${translate("worst")}`);
    yield svg("text", { x: right, y: 10, "text-anchor": "end" }, median, worst);
    yield svg("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, translate("speed"));
  }

  /** @param {"median" | "worst"} kind @param {Point[]} known @param {(error: number) => number} down */
  *line(kind, known, down) {
    const placed = known.filter((point) => point[kind] > 0);
    const at = placed.map((point) => [this.across(point.speed), down(point[kind])]);
    yield svg("polyline", { class: `erta-line-${kind}`, points: at.map((place) => place.join()).join(" ") });
    for (const [i, [x, y]] of at.entries()) {
      const title = svg("title", {}, `${times(placed[i].speed)}: ${describe(placed[i])}`);
      const place = { class: `erta-dot-${kind}` };
      if (kind === "median") yield svg("circle", { ...place, cx: x, cy: y, r: 3.2 }, title);
      else yield svg("path", { ...place, d: `M${x - 4} ${y}L${x} ${y - 4}L${x + 4} ${y}L${x} ${y + 4}Z` }, title);
    }
  }

  /** @param {number[][]} map */
  drawMap(map) {
    const side = map.length;
    this.lower.classList.toggle("erta-no-map", !side);
    this.map.width = this.map.height = Math.max(side, 1);
    const paint = this.map.getContext("2d");
    if (!side || !paint) return;
    const most = Math.max(...map.flat(), 1e-12);
    const picture = paint.createImageData(side, side);
    map.flat().forEach((value, i) => picture.data.set([...shade(Math.sqrt(value / most)), 255], 4 * i));
    paint.putImageData(picture, 0, 0);
    const near = map.slice(1).reduce((sum, row, i) => sum + row[i], 0) / Math.max(side - 1, 1);
    this.largest.textContent = percent(most);
    const values = { near: percent(near), most: percent(most) };
    const words = translate("Difference between model calls: neighbours {near} on average, at most {most}", values);
    this.map.setAttribute("aria-label", words);
  }

  /** @param {PointerEvent} event */
  nameCell(event) {
    const map = this.content?.map ?? [];
    const [x, y] = [event.offsetX / this.map.clientWidth, event.offsetY / this.map.clientHeight];
    const [row, column] = [y, x].map((part) => Math.min(Math.max(Math.floor(part * map.length), 0), map.length - 1));
    const count = this.content?.sigmas?.length ?? map.length;
    const name = (/** @type {number} */ i) => 1 + Math.round((i * (count - 1)) / Math.max(map.length - 1, 1));
    this.map.title = `${name(row)} / ${name(column)}: ${percent(map[row]?.[column] ?? 0)}`;
  }
}

/** @param {Point} point */
function describe({ computed, of, median, worst }) {
  const count = translate("{computed} of {all} computed", { computed, all: of });
  const error = { error: percent(median), worst: percent(worst) };
  return `${count}, ${median > 0 ? translate("error {error}, at worst {worst}", error) : translate("error not known")}`;
}

/** @param {Content} content */
function facts({ name, measured = {} }) {
  const { guidance, steps, level } = measured;
  const lines = [name, measured.model_class, [measured.sampler, measured.scheduler].filter(Boolean).join(", ")];
  const size = (measured.latent_shape ?? []).join("×");
  const numbers = [steps && translate("{steps} steps", { steps })];
  numbers.push(guidance != null && translate("guidance {guidance}", { guidance }));
  lines.push(numbers.filter(Boolean).join(", "), size && `latent ${size}`);
  lines.push(level && translate("{level} level", { level }));
  return lines.filter(Boolean).map(String);
}

/** Round numbers between two errors: all of 1, 2, 5 where these are few. @param {number} low @param {number} high */
function ticksBetween(low, high) {
  const decades = Array.from({ length: 14 }, (_, i) => 10 ** (i - 9));
  const fine = decades.flatMap((decade) => [decade, 2 * decade, 5 * decade]);
  const within = (/** @type {number[]} */ all) => all.filter((tick) => tick >= low / 1.6 && tick <= high * 1.6);
  const found = within(fine).length <= 5 ? within(fine) : within(decades);
  return found.length ? found : [low];
}

/** @param {number} part 0 to 1 */
function shade(part) {
  const place = Math.min(Math.max(part, 0), 1) * (SHADES.length - 1);
  const first = Math.min(Math.floor(place), SHADES.length - 2);
  return SHADES[first].map((value, i) => Math.round(value + (place - first) * (SHADES[first + 1][i] - value)));
}
