// @ts-check
/** What a turn of the knob comes to, in words: arithmetic on the curve that is known, no call to the server. */
import { percent } from "./dom.js";

/** @typedef {{ speed: number, computed: number, of: number, median: number, worst: number, compute?: string }} Point */
/**
 * @typedef {object} Knob
 * @property {number} speed
 * @property {number} [evaluations] unknown for a model patch that has not run
 * @property {Point[]} [curve]
 * @property {boolean} [fixed] something else than the speed decides what is computed
 */

/** To even where it is a tie, as the planner rounds. @param {number} value */
function rounded(value) {
  const low = Math.floor(value);
  const half = value - low;
  return half === 0.5 ? low + (low % 2) : Math.round(value);
}

/** @param {number} evaluations @param {number} speed */
export function computedOf(evaluations, speed) {
  return Math.min(Math.max(rounded(evaluations / speed), 2), evaluations);
}

/** @param {Knob} knob */
export function forecast({ speed, evaluations, curve = [], fixed = false }) {
  if (fixed) return "The preset or threshold decides which steps are computed.";
  if (!(speed > 1)) return "Every step is computed: no error, no gain.";
  const share = evaluations ? computedOf(evaluations, speed) / evaluations : 1 / speed;
  if (share >= 1) return "Every step is computed: too few to skip any.";
  const count = evaluations ? `${computedOf(evaluations, speed)} of ${evaluations} steps` : `${percent(share)} of the steps`;
  return `${count} computed · ${expected(share, curve)}`;
}

/** @param {number} share computed ones of all @param {Point[]} curve */
function expected(share, curve) {
  const known = curve
    .filter((point) => point.of > 0 && point.median > 0)
    .map((point) => ({ share: point.computed / point.of, median: point.median, worst: point.worst }))
    .sort((one, other) => other.share - one.share);
  if (!known.length) return "the error is known after a profile";
  const [least, most] = [known[0], known[known.length - 1]];
  if (share > least.share) return `error below ${percent(least.median)}`;
  if (share < most.share) return `error above ${percent(most.median)}`;
  const next = known.findIndex((point) => point.share <= share);
  const [above, below] = [known[Math.max(next - 1, 0)], known[next]];
  const way = above.share === below.share ? 0 : (above.share - share) / (above.share - below.share);
  const worst = between(above.worst, below.worst, way);
  return `error about ${percent(between(above.median, below.median, way))}${worst ? `, at worst ${percent(worst)}` : ""}`;
}

/** On a straight line of logarithms: errors grow by factors. @param {number} from @param {number} to @param {number} way */
function between(from, to, way) {
  return from > 0 && to > 0 ? Math.exp(Math.log(from) + way * (Math.log(to) - Math.log(from))) : 0;
}
