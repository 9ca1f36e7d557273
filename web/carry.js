// @ts-check
/**
 * The plan of a run, saved with the workflow in a widget of two values. What is saved is the plan of the last run. What
 * is queued stays what the widget held before that run filled it: with the new plan in the prompt, ComfyUI would take
 * an unchanged workflow for a changed one and sample again. A workflow that is loaded, or a plan that is typed or
 * cleared, is queued as it stands.
 */

/** @typedef {import("./graph.js").Widget} Widget */

/**
 * Gives the plan's widget its two values and returns the function that fills it.
 * @param {Widget} widget
 * @returns {(plan: string | undefined) => void}
 */
export function carry(widget) {
  /** @type {string | undefined} */
  let filled;
  let queued = "";
  widget.serializeValue = () => (widget.value === filled ? queued : widget.value);
  hide(widget);
  return (plan) => {
    if (!plan) return;
    if (widget.value !== filled) queued = widget.value;
    filled = widget.value = plan;
  };
}

/** Some KB of JSON that nobody reads. The server hides it too, which older front ends overlook. @param {Widget} widget */
function hide(widget) {
  widget.hidden = true;
  widget.computeSize = () => [0, -4]; // takes back the space between widgets
}
