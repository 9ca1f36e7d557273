// @ts-check
/** What a turn of the knob comes to, in words: arithmetic on the curve that is known, no call to the server. */
import { percent } from "./dom.js";
import { translate } from "./words.js";

/** @typedef {{ speed: number, computed: number, of: number, median: number, worst: number, compute?: string }} Point */
/**
 * @typedef {object} Knob
 * @property {number} speed
 * @property {number} [calls] unknown for a model patch that has not run
 * @property {Point[]} [curve]
 * @property {boolean} [fixed] something else than the speed decides what is computed
 */

/** With fewer model calls the planner reuses none. */
const FEWEST = 6;
/** Errors of the latent from which on the picture is another one, and up to which it is much the same. */
const CHANGED = 0.2;
const KEPT = 0.1;

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

/** @param {Knob} knob */
export function forecast({ speed, calls, curve = [], fixed = false }) {
  if (fixed) return translate("The preset or threshold decides which steps are computed.");
  if (!(speed > 1)) return translate("Every step is computed: no error, no gain.");
  const computed = calls && computedOf(calls, speed);
  const share = calls && computed ? computed / calls : 1 / speed;
  if (share >= 1 || (calls && calls < FEWEST)) return translate("Every step is computed: too few to skip any.");
  const count = computed
    ? translate("{computed} of {all} steps computed", { computed, all: calls })
    : translate("{share} of the steps computed", { share: percent(share) });
  return `${count} · ${expected(share, curve)}`;
}

/** @param {number} share computed ones of all @param {Point[]} curve */
function expected(share, curve) {
  const known = curve
    .filter((point) => point.of > 0 && point.median > 0)
    .map((point) => ({ ...point, share: point.computed / point.of }))
    .sort((one, other) => other.share - one.share);
  if (!known.length) return translate("the error is known after a profile");
  const [least, most] = [known[0], known[known.length - 1]];
  if (share > least.share) return translate("error below {error}", { error: percent(least.median) });
  if (share < most.share) {
    return translate("error above {error}", { error: percent(most.median) }) + advice(most.median, known);
  }
  const next = known.findIndex((point) => point.share <= share);
  const [above, below] = [known[Math.max(next - 1, 0)], known[next]];
  const way = above.share === below.share ? 0 : (above.share - share) / (above.share - below.share);
  const median = between(above.median, below.median, way);
  const error = percent(median);
  const worst = between(above.worst, below.worst, way);
  const words = worst
    ? translate("error about {error}, at worst {worst}", { error, worst: percent(worst) })
    : translate("error about {error}", { error });
  return words + advice(median, known);
}

/** Which speed is still good, where this one is not. @param {number} error @param {Point[]} known fastest last */
function advice(error, known) {
  if (error < CHANGED) return "";
  const good = known.filter((point) => point.median <= KEPT).pop();
  const words = good
    ? translate("another picture; {speed}x keeps it, with {error}", { speed: good.speed, error: percent(good.median) })
    : translate("another picture, at every speed");
  return ` · ${words}`;
}

/** On a straight line of logarithms: errors grow by factors. @param {number} from @param {number} to @param {number} way */
function between(from, to, way) {
  return from > 0 && to > 0 ? Math.exp(Math.log(from) + way * (Math.log(to) - Math.log(from))) : 0;
}
