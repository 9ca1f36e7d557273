// @ts-check
/** What a turn of the knob comes to, in words: arithmetic on the curve that is known, no call to the server. */
import { percent } from "./dom.js";
import { CHANGED, goodPoint, meaning } from "./quality.js";
import { translate } from "./words.js";

/** @typedef {{ speed: number, computed: number, of: number, median: number, worst: number, compute?: string }} Point */
/**
 * @typedef {object} Knob
 * @property {number} speed
 * @property {number} [calls] unknown for a model patch that has not run
 * @property {Point[]} [curve]
 * @property {boolean} [fixed] something else than the speed decides what is computed
 */
/** @typedef {{ count: string, expected?: string, warning?: boolean }} Forecast */

/** With fewer model calls the planner reuses none. */
const FEWEST = 6;

/** To even where it is a tie, as the planner rounds. @param {number} value */
function rounded(value) {
  const low = Math.floor(value);
  const half = value - low;
  return half === 0.5 ? low + (low % 2) : Math.round(value);
}

/** @param {number} calls @param {number} speed */
export function computedOf(calls, speed) {
  return Math.min(Math.max(rounded(calls / speed), 2), calls);
}

/** @param {Knob} knob @returns {Forecast} */
export function forecast({ speed, calls, curve = [], fixed = false }) {
  if (fixed) return { count: translate("The preset or threshold decides which steps are computed") };
  if (!(speed > 1)) return { count: translate("Every step is computed") };
  const computed = calls && computedOf(calls, speed);
  const share = calls && computed ? computed / calls : 1 / speed;
  if (share >= 1 || (calls && calls < FEWEST)) return { count: translate("Every step is computed: too few to skip any") };
  const count = computed
    ? translate("{computed} of {all} steps computed", { computed, all: calls })
    : translate("{share} of the steps computed", { share: percent(share) });
  return { count, ...expectation(share, curve) };
}

/** @param {number} share computed ones of all @param {Point[]} curve */
function expectation(share, curve) {
  const known = curve
    .filter((point) => point.of > 0 && point.median > 0)
    .map((point) => ({ ...point, share: point.computed / point.of }))
    .sort((one, other) => other.share - one.share);
  if (!known.length) return {};
  const [least, most] = [known[0], known[known.length - 1]];
  if (share > least.share) return said(least.median, translate("below {error}", { error: percent(least.median) }), known);
  if (share < most.share) return said(most.median, translate("above {error}", { error: percent(most.median) }), known);
  const next = known.findIndex((point) => point.share <= share);
  const [above, below] = [known[Math.max(next - 1, 0)], known[next]];
  const way = above.share === below.share ? 0 : (above.share - share) / (above.share - below.share);
  const median = between(above.median, below.median, way);
  const worst = between(above.worst, below.worst, way);
  return said(median, errorWords(median, worst), known);
}

/** @param {number} median @param {number} worst */
export function errorWords(median, worst) {
  const values = { error: percent(median), worst: percent(worst) };
  return worst ? translate("error {error}, at worst {worst}", values) : translate("error {error}", values);
}

/** @param {number} error @param {string} number in words @param {Point[]} known @returns {{ expected: string, warning: boolean }} */
function said(error, number, known) {
  const words = `${meaning(error)} (${number})`;
  if (error < CHANGED) return { expected: words, warning: false };
  const good = goodPoint(known);
  const advice = good
    ? translate("speed {speed} keeps the picture ({error})", { speed: good.speed, error: percent(good.median) })
    : translate("at every speed");
  return { expected: `${words}; ${advice}`, warning: true };
}

/** On a straight line of logarithms: errors grow by factors. @param {number} from @param {number} to @param {number} way */
function between(from, to, way) {
  return from > 0 && to > 0 ? Math.exp(Math.log(from) + way * (Math.log(to) - Math.log(from))) : 0;
}
