// @ts-check
/** Two clips on one canvas, in step: side by side, one wiped over the other, or the difference eight times brighter. */
import { html } from "./dom.js";
import { translate } from "./words.js";

/** @typedef {"side" | "wipe" | "difference"} Mode */
/**
 * @typedef {object} Clips two pictures of one size, each with a clip's frames in rows
 * @property {string[]} addresses of the reference's and the candidate's picture
 * @property {number} columns
 * @property {number} width of one frame
 * @property {number} height
 */
/** @typedef {{ x: number, y: number, wide: number, high: number }} Place */

const GAP = 6;
const ROOM = { wide: 360, least: 120, most: 240 }; // of the picture in a node of usual width
const DOUBLINGS = 3; // of the difference: eight times
const STEPS = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10 };

export class ClipStage {
  constructor() {
    this.canvas = html("canvas", { role: "img" });
    this.divider = html("div", { class: "erta-compare-divider", role: "slider", tabindex: 0, hidden: "" });
    this.divider.setAttribute("aria-label", translate("Share of the reference"));
    this.divider.setAttribute("aria-valuemin", "0");
    this.divider.setAttribute("aria-valuemax", "100");
    this.element = html("div", { class: "erta-compare-stage", hidden: "" }, this.canvas, this.divider);
    /** @type {Mode} */
    this.mode = "side";
    this.frame = 0;
    this.percent = 50;
    this.least = 0; // height
    /** @type {Clips | undefined} */
    this.clips = undefined;
    /** @type {HTMLImageElement[]} */
    this.pictures = [];
    this.divider.addEventListener("keydown", (event) => this.press(event));
    this.element.addEventListener("pointerdown", (event) => this.grab(event));
    this.element.addEventListener("pointermove", (event) => this.drag(event));
    this.size = new ResizeObserver(() => this.draw());
    this.size.observe(this.element);
  }

  remove() {
    this.size.disconnect();
  }

  /** Rejects where a picture is gone: they are in ComfyUI's folder of temporary files. @param {Clips} clips */
  async show(clips) {
    this.clips = clips;
    const pictures = clips.addresses.map((address) => Object.assign(new Image(), { src: address }));
    await Promise.all(pictures.map((picture) => picture.decode()));
    if (this.clips !== clips) return; // another comparison has come meanwhile
    this.pictures = pictures;
    const high = (ROOM.wide * clips.height) / clips.width;
    this.least = Math.round(Math.min(Math.max(high, ROOM.least), ROOM.most));
    this.element.style.minHeight = `${this.least}px`;
    this.draw();
  }

  /** @param {Mode} mode */
  look(mode) {
    this.mode = mode;
    this.draw();
  }

  /** @param {number} frame of those in the pictures */
  turnTo(frame) {
    this.frame = frame;
    this.draw();
  }

  /** @param {number} percent of the picture that is the reference's */
  wipeTo(percent) {
    this.percent = Math.round(Math.min(Math.max(percent, 0), 100));
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const step = /** @type {Record<string, number>} */ (STEPS)[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? 100 : step && this.percent + step;
    if (to === undefined) return;
    event.preventDefault();
    this.wipeTo(to);
  }

  /** @param {PointerEvent} event */
  grab(event) {
    if (this.mode !== "wipe" || event.button !== 0) return;
    this.element.setPointerCapture(event.pointerId);
    this.divider.focus({ preventScroll: true });
    this.drag(event);
  }

  /** @param {PointerEvent} event */
  drag(event) {
    if (!this.element.hasPointerCapture(event.pointerId)) return;
    const box = this.element.getBoundingClientRect(); // as zoomed
    const place = this.place(0, this.element.clientWidth);
    const at = ((event.clientX - box.left) / box.width) * this.element.clientWidth;
    this.wipeTo((100 * (at - place.x)) / place.wide);
  }

  /** Where a frame fits between two edges. @param {number} left @param {number} right @returns {Place} */
  place(left, right) {
    const { width, height } = /** @type {Clips} */ (this.clips);
    const tall = this.element.clientHeight;
    const scale = Math.min((right - left) / width, tall / height);
    // Whole pixels: a blurred edge would glow in the difference.
    const [wide, high] = [width, height].map((length) => Math.max(Math.round(length * scale), 1));
    return { x: Math.round((left + right - wide) / 2), y: Math.round((tall - high) / 2), wide, high };
  }

  draw() {
    const [wide, high] = [this.element.clientWidth, this.element.clientHeight];
    const paint = this.canvas.getContext("2d");
    this.divider.toggleAttribute("hidden", this.mode !== "wipe");
    if (!paint || !wide || !high || !this.clips || this.pictures.length < 2) return;
    const sharp = Math.max(devicePixelRatio, 2); // a node that is zoomed in stays sharp
    [this.canvas.width, this.canvas.height] = [wide * sharp, high * sharp];
    paint.scale(sharp, sharp);
    if (this.mode === "side") this.drawSides(paint, wide);
    else if (this.mode === "wipe") this.drawWipe(paint, this.place(0, wide));
    else this.drawDifference(paint, this.place(0, wide));
  }

  /** @param {CanvasRenderingContext2D} paint @param {number} which @param {Place} place */
  put(paint, which, { x, y, wide, high }) {
    const { columns, width, height } = /** @type {Clips} */ (this.clips);
    const [column, row] = [this.frame % columns, Math.floor(this.frame / columns)];
    paint.imageSmoothingEnabled = wide < 4 * width; // a latent's few values stay squares
    paint.drawImage(this.pictures[which], column * width, row * height, width, height, x, y, wide, high);
  }

  /** @param {CanvasRenderingContext2D} paint @param {number} wide */
  drawSides(paint, wide) {
    const half = (wide - GAP) / 2;
    this.put(paint, 0, this.place(0, half));
    this.put(paint, 1, this.place(wide - half, wide));
    this.canvas.setAttribute("aria-label", translate("Reference on the left, candidate on the right"));
  }

  /** @param {CanvasRenderingContext2D} paint @param {Place} place */
  drawWipe(paint, place) {
    const edge = place.x + (place.wide * this.percent) / 100;
    this.put(paint, 0, place);
    paint.beginPath();
    paint.rect(edge, place.y, place.x + place.wide - edge, place.high);
    paint.clip();
    this.put(paint, 1, place);
    Object.assign(this.divider.style, { left: `${edge}px`, top: `${place.y}px`, height: `${place.high}px` });
    this.divider.setAttribute("aria-valuenow", String(this.percent));
    this.canvas.setAttribute("aria-label", translate("Candidate wiped over the reference"));
  }

  /** @param {CanvasRenderingContext2D} paint @param {Place} place */
  drawDifference(paint, place) {
    this.put(paint, 0, place);
    paint.globalCompositeOperation = "difference";
    this.put(paint, 1, place);
    paint.globalCompositeOperation = "lighter";
    const [wide, high] = [this.element.clientWidth, this.element.clientHeight];
    for (let i = 0; i < DOUBLINGS; i++) paint.drawImage(this.canvas, 0, 0, wide, high);
    this.canvas.setAttribute("aria-label", translate("Difference, eight times brighter"));
  }
}
