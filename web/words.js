// @ts-check
/**
 * Texts in the language of ComfyUI. They are the pack's own locales/<language>/main.json, which the server gives out
 * together with those of other packs. Where it does not, or has no such language, everything is in English.
 */
import { app } from "../../scripts/app.js";

/** @typedef {Record<string, string | number>} Values what stands in a text's braces, by name */
/** @typedef {{ level: "info" | "warning", code: string, text: string, values: Record<string, string> }} Note */

/** @type {Record<string, any>} by language */
let locales = {};

/** Called once, before a workflow is loaded. */
export async function loadWords() {
  try {
    locales = (await (await app.api.fetchApi("/i18n")).json()) ?? {};
  } catch (problem) {
    console.info("ERTACache: no translations", problem);
  }
}

/** @param {"notes" | "panel"} group @param {string} key @returns {string | undefined} */
function translation(group, key) {
  return locales[app.extensionManager.setting.get("Comfy.Locale")]?.ertacache?.[group]?.[key];
}

/** A text of the panel. @param {string} english its key as well @param {Values} [values] */
export function translate(english, values = {}) {
  return filled(translation("panel", english) ?? english, values);
}

/** @param {Note} note */
export function noteText({ code, text, values }) {
  const translated = translation("notes", code);
  const words = translated ? filled(translated, values) : text;
  return capital(words);
}

/** @param {string} words */
export function capital(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** @param {string} text @param {Values} values */
function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (braces, name) => String(values[name] ?? braces));
}
