// @ts-check
/** A comparison to look at: both clips playing, how far apart they are, in words and by frame, how both were made. */
import { app } from "../../scripts/app.js";
import { ClipStage } from "./clip_stage.js";
import { duration, html, percent, svg } from "./dom.js";
import { CHANGED, meaning, VISIBLE } from "./quality.js";
import { countOf } from "./report.js";
import { capital, translate } from "./words.js";

/** @typedef {import("./graph.js").Node} Node */
/** @typedef {import("./report.js").Report} Report */
/** @typedef {import("./clip_stage.js").Mode} Mode */
/**
 * @typedef {object} Content what ERTA Compare found; frames are counted from 1
 * @property {number} psnr
 * @property {number} ssim
 * @property {number} psnr_worst_frame
 * @property {number[]} frame_psnr
 * @property {number | null} [error] of a latent, relative
 * @property {number[]} [sound_snr] in dB, of what a nested latent holds beside the picture
 * @property {boolean} identical
 * @property {Shown} clips
 */
/**
 * @typedef {object} Shown the frames that are played, counted from 0, and where they are
 * @property {number[]} frames
 * @property {number} columns
 * @property {number} width
 * @property {number} height
 * @property {Record<string, string>[]} sheets
 */

/** PSNR of pictures, in dB, below which the errors VISIBLE and CHANGED of a latent lie: pictures have no such error. */
const PSNR = { visible: 48, changed: 30 };

const RATE = 16; // frames of the clip a second, as Wan renders them: which rate these are made for is not known here
const LEAST = 1.5; // seconds once through: a few frames would only flicker
const WIDTH = 400; // of a new node
const LOOKED_THROUGH = 50; // nodes before an input
const CHART = { height: 62, left: 30, right: 6, top: 6, bottom: 6 };
const OURS = new Set([" ", "Enter", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);

export class CompareView {
  /**
   * @param {Node} node
   * @param {(node: Node) => Report[] | undefined} reportsOf what a node of ours reported last
   * @param {() => void} resized
   */
  constructor(node, reportsOf, resized) {
    this.node = node;
    this.reportsOf = reportsOf;
    this.resized = resized;
    if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]); // one from a file gets its own size after this
    this.meaning = html("div", { class: "erta-headline" });
    this.numbers = html("div");
    this.gone = html("div", { hidden: "" }, translate("The pictures are gone. Run the workflow again to see them."));
    this.stage = new ClipStage();
    this.modes = html("div", { class: "erta-compare-modes", role: "group", "aria-label": translate("How to compare") });
    this.captions = html("div", { class: "erta-compare-captions" });
    this.button = html("button", { class: "erta-compare-play" });
    this.slider = html("input", { type: "range", min: 0, step: 1, "aria-label": translate("Frame") });
    this.place = html("span");
    this.player = html("div", { class: "erta-compare-player" }, this.button, this.slider, this.place);
    this.chart = svg("svg", { class: "erta-compare-chart", role: "img" });
    this.worst = html("button");
    this.renders = html("div", { class: "erta-compare-renders" });
    this.element = html("div", { class: "erta-compare", hidden: "" }, this.meaning, this.numbers, this.gone);
    const title = html("span", {}, translate("PSNR per frame, dB"));
    this.scores = html("div", { class: "erta-compare-scores" }, title, this.worst, this.chart);
    this.element.append(this.modes, this.captions, this.stage.element, this.player, this.scores, this.renders);
    /** @type {Content | undefined} */
    this.content = undefined;
    this.at = 0;
    this.plays = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.isSeen = false;
    this.timer = 0;
    this.listen();
    this.look("side");
  }

  listen() {
    for (const [mode, words] of /** @type {[Mode, string][]} */ (names())) {
      const button = html("button", { "data-mode": mode }, words);
      button.addEventListener("click", () => this.look(mode));
      this.modes.append(button);
    }
    this.button.addEventListener("click", () => this.play(!this.plays));
    this.slider.addEventListener("input", () => this.stopAt(Number(this.slider.value)));
    this.worst.addEventListener("click", () => this.stopAt(this.nearest((this.content?.psnr_worst_frame ?? 1) - 1)));
    this.chart.addEventListener("click", (event) => this.stopAt(this.nearest(this.frameAt(event.offsetX))));
    // Else the canvas below pans on a space, and ComfyUI moves the node.
    this.element.addEventListener("keydown", (event) => OURS.has(event.key) && event.stopPropagation());
    this.element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
    this.size = new ResizeObserver(() => this.drawChart());
    this.size.observe(this.element);
    this.sight = new IntersectionObserver(([entry]) => {
      this.isSeen = entry.isIntersecting;
      this.play(this.plays);
    });
    this.sight.observe(this.element);
  }

  remove() {
    this.stage.remove();
    this.size?.disconnect();
    this.sight?.disconnect();
    clearTimeout(this.timer);
  }

  /** @param {Content} content */
  show(content) {
    const { frames, columns, width, height, sheets } = content.clips;
    const isNew = this.content?.clips.sheets[0].filename !== sheets[0].filename;
    this.content = content;
    this.element.removeAttribute("hidden");
    this.meaning.textContent = words(content);
    for (const part of [this.player, this.scores]) part.toggleAttribute("hidden", frames.length < 2);
    this.slider.max = String(frames.length - 1);
    const score = { frame: content.psnr_worst_frame, psnr: decibel(content.frame_psnr[content.psnr_worst_frame - 1]) };
    this.worst.textContent = translate("Worst frame: {frame}, {psnr}", score);
    if (isNew) void this.load({ addresses: sheets.map(addressOf), columns, width, height });
    this.turnTo(isNew ? 0 : this.at);
    this.play(this.plays);
    this.showRenders();
  }

  /** @param {import("./clip_stage.js").Clips} clips */
  async load(clips) {
    const isThere = await this.stage.show(clips).then(
      () => true,
      () => false,
    );
    for (const part of [this.stage.element, this.modes, this.captions]) part.toggleAttribute("hidden", !isThere);
    this.player.toggleAttribute("hidden", !isThere || this.slider.max === "0");
    this.gone.toggleAttribute("hidden", isThere);
    this.resized();
  }

  /** @param {Mode} mode */
  look(mode) {
    for (const button of this.modes.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
    const both = [translate("reference"), translate("candidate")];
    const words = mode === "difference" ? [translate("black: no difference")] : both;
    this.captions.replaceChildren(...words.map((word) => html("span", {}, word)));
    this.captions.dataset.mode = mode;
    this.stage.look(mode);
  }

  /** @param {boolean} plays */
  play(plays) {
    this.plays = plays;
    clearTimeout(this.timer);
    this.button.textContent = plays ? "❚❚" : "▶";
    this.button.setAttribute("aria-label", plays ? translate("Pause") : translate("Play"));
    const shown = this.content?.clips.frames.length ?? 0;
    if (!plays || !this.isSeen || shown < 2) return;
    const seconds = Math.max((this.content?.frame_psnr.length ?? 0) / RATE, LEAST);
    const next = () => {
      this.turnTo((this.at + 1) % shown);
      this.timer = window.setTimeout(next, (1000 * seconds) / shown);
    };
    this.timer = window.setTimeout(next, (1000 * seconds) / shown);
  }

  /** @param {number} at */
  stopAt(at) {
    this.play(false);
    this.turnTo(at);
  }

  /** @param {number} at of the frames that are played */
  turnTo(at) {
    const { clips, frame_psnr: scores } = this.content ?? {};
    if (!clips || !scores) return;
    this.at = at;
    const frame = clips.frames[at];
    const values = { frame: frame + 1, all: scores.length, psnr: decibel(scores[frame]) };
    this.place.textContent = `${values.frame} / ${values.all}`;
    this.slider.value = String(at);
    this.slider.setAttribute("aria-valuetext", translate("Frame {frame} of {all}, {psnr}", values));
    this.stage.turnTo(at);
    const x = this.across(frame);
    for (const end of ["x1", "x2"]) this.chart.querySelector(".erta-chosen")?.setAttribute(end, String(x));
  }

  /** Which of the frames that are played. @param {number} frame */
  nearest(frame) {
    const far = (this.content?.clips.frames ?? []).map((shown) => Math.abs(shown - frame));
    return far.indexOf(Math.min(...far));
  }

  /** @param {number} frame */
  across(frame) {
    const room = Math.max(this.chart.clientWidth, 120) - CHART.left - CHART.right;
    return CHART.left + (room * frame) / Math.max((this.content?.frame_psnr.length ?? 0) - 1, 1);
  }

  /** @param {number} x */
  frameAt(x) {
    return (x - this.across(0)) / Math.max(this.across(1) - this.across(0), 1e-6);
  }

  drawChart() {
    const scores = this.content?.frame_psnr ?? [];
    if (scores.length < 2) return;
    const [low, high] = [Math.floor(Math.min(...scores) - 0.5), Math.ceil(Math.max(...scores) + 0.5)];
    const room = CHART.height - CHART.top - CHART.bottom;
    const at = scores.map((score, i) => [this.across(i), CHART.top + (room * (high - score)) / (high - low)]);
    const worst = at[(this.content?.psnr_worst_frame ?? 1) - 1];
    const right = this.across(scores.length - 1);
    const ends = { low: decibel(Math.min(...scores)), high: decibel(Math.max(...scores)) };
    this.chart.setAttribute("aria-label", translate("PSNR per frame, from {low} to {high}", ends));
    const now = this.across(this.content?.clips.frames[this.at] ?? 0);
    const title = svg("title", {}, this.worst.textContent ?? "");
    this.chart.replaceChildren(
      ...[high, low].flatMap((value, i) => {
        const y = i ? CHART.height - CHART.bottom : CHART.top;
        const label = svg("text", { x: CHART.left - 5, y: y + 3.5, "text-anchor": "end" }, String(value));
        return [svg("line", { class: "erta-grid", x1: CHART.left, x2: right, y1: y, y2: y }), label];
      }),
      svg("line", { class: "erta-chosen", x1: now, x2: now, y1: CHART.top, y2: CHART.height - CHART.bottom }),
      svg("polyline", { class: "erta-line-median", points: at.map((place) => place.join()).join(" ") }),
      svg("circle", { class: "erta-compare-dot", cx: worst[0], cy: worst[1], r: 4 }, title),
    );
  }

  /** Measured beside predicted, and how both clips were made: again whenever a node before this one reports. */
  showRenders() {
    if (!this.content) return;
    const [reference, candidate] = ["reference", "candidate"].map((name) => this.reportBefore(name));
    const predicted = candidate?.predicted_error?.[0];
    this.numbers.replaceChildren(...numbers(this.content, predicted).map((line) => html("div", {}, line)));
    const rows = [
      ...renderRow(translate("reference"), reference === candidate ? undefined : reference),
      ...renderRow(translate("candidate"), candidate),
    ];
    this.renders.replaceChildren(...rows);
    this.renders.toggleAttribute("hidden", !rows.length);
  }

  /** Of the nearest node of ours before an input, in the same graph. @param {string} name */
  reportBefore(name) {
    const slot = this.node.inputs?.findIndex((input) => input.name === name) ?? -1;
    const nodes = slot < 0 ? [] : [this.node.getInputNode(slot)];
    for (let i = 0; i < nodes.length && i < LOOKED_THROUGH; i++) {
      const node = nodes[i];
      const report = node && this.reportsOf(node)?.findLast((one) => one.calls !== undefined);
      if (report) return report;
      nodes.push(...(node ? before(node) : []).filter((one) => !nodes.includes(one)));
    }
    return undefined;
  }
}

/** Where a model comes in, what comes out was made by it, whatever else went in. @param {Node} node */
function before(node) {
  const inputs = (node.inputs ?? []).map((input, slot) => ({ type: String(input.type), slot }));
  const models = inputs.filter(({ type }) => type === "MODEL" || type === "GUIDER");
  return (models.length ? models : inputs).map(({ slot }) => node.getInputNode(slot));
}

const names = () => [
  ["side", translate("Side by side")],
  ["wipe", translate("Wipe")],
  ["difference", translate("Difference ×8")],
];

/** @param {Record<string, string>} sheet */
function addressOf({ filename, subfolder, type }) {
  return app.api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** @param {Content} content */
function words({ identical, error, psnr }) {
  if (identical) return translate("Identical");
  const like = psnr >= PSNR.visible ? 0 : psnr >= PSNR.changed ? VISIBLE : CHANGED;
  return capital(meaning(error ?? like));
}

/** @param {Content} content @param {number} [predicted] */
function numbers({ error, psnr, ssim, sound_snr: sounds = [] }, predicted) {
  const heard = sounds.map((ratio) => translate("sound: SNR {ratio}", { ratio: decibel(ratio) }));
  const scores = [`PSNR ${decibel(psnr)} · SSIM ${ssim.toFixed(4)}`, ...heard];
  const known = predicted !== undefined && predicted > 0;
  const values = { error: percent(error ?? 0), predicted: percent(predicted ?? 0) };
  if (error == null) return known ? [...scores, translate("predicted error of the latent {predicted}", values)] : scores;
  if (!known) return [translate("measured {error}", values), ...scores];
  return [translate("measured {error}, predicted {predicted}", values), ...scores];
}

/** @param {string} name @param {Report} [report] */
function renderRow(name, report) {
  if (!report) return [];
  return [name, duration(report.seconds), countOf(report)].map((words) => html("span", {}, words));
}

/** @param {number} value */
function decibel(value) {
  return `${value.toFixed(1)} dB`;
}
