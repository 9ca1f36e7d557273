// @ts-check
/** What a predicted or measured relative error of the latent means to the eye. As erta/meaning.py, whose limits these are. */
import { translate } from "./words.js";

/** @typedef {import("./forecast.js").Point} Point */

export const VISIBLE = 0.03;
export const CHANGED = 0.15;
const KEPT = 0.1;

/** @param {number} error */
export function meaning(error) {
  if (error < VISIBLE) return translate("no visible difference expected");
  return error < CHANGED ? translate("small differences in detail") : translate("motion and layout may change");
}

/** The fastest point of an error curve that keeps the picture. @param {Point[]} curve @returns {Point | undefined} */
export function goodPoint(curve) {
  const good = curve.filter((point) => point.median > 0 && point.median <= KEPT);
  return good.sort((one, other) => other.speed - one.speed)[0];
}
