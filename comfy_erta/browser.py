"""What the browser gets: live progress, the report of a run, and the plan in the saved workflow."""

import logging
import time
from typing import Any

from ..erta.schedules import as_text
from .machines import running_server
from .measuring import perturbs
from .report import Report
from .task import Start

logger = logging.getLogger("ertacache")

_INTERVAL = 0.1  # seconds between live events: more than 10 a second only costs
_CARRIERS = ("ERTACachedSampler", "ERTACache")  # the nodes with a widget for the plan


class Browser:
    """Watcher that tells the browser which queued the run: the plan, which calls were computed or reused, the report.

    ``hidden``: the node's. ``runs``: that ERTA Profile records, 0 of other nodes. ``bar``: ComfyUI's bar of the node
    counts what is computed in all runs, so that the time left is right. Not of other packs' sampler nodes.
    """

    def __init__(self, hidden: Any, runs: int = 0, bar: bool = False) -> None:
        # In a loop ComfyUI runs copies of a node; the browser and the workflow know the one that is drawn.
        drawn = hidden.dynprompt.get_display_node_id if hidden.dynprompt else str
        self._node_id, self._pnginfo = drawn(hidden.unique_id), hidden.extra_pnginfo
        self._prompt = getattr(running_server(), "last_prompt_id", None)
        self._sent, self._kinds = 0.0, ""
        self._runs, self._bar = runs, bar
        self._run = self._done = self._total = 0  # model calls that are computed

    def begin(self, start: Start) -> None:
        self._kinds = ""
        compute = as_text(start.plan.compute) if start.plan else "1" * len(start.sigmas)
        recording = start.plan is None and bool(start.sigmas)
        self._run += recording
        self._total = self._done + compute.count("1") + max(self._runs - self._run, 0) * len(compute)
        if self._runs and self._run == 1 and recording and perturbs(start.level, len(compute)):
            self._total += len(compute) // 2
        about = {"recording": recording, "run": self._run, "runs": self._runs}
        self._send("plan", compute=compute, sigmas=list(start.sigmas), left=self._total - self._done, **about)

    def refused(self, words: str) -> None:
        self._send("refused", words=words)

    def called(self, i: int, computed: bool) -> None:
        """Send what the model calls so far were, unless that was done a moment ago."""
        self._kinds += "1" if computed else "0"
        self._done += computed
        if time.monotonic() - self._sent >= _INTERVAL:
            self._sent = time.monotonic()
            self._send("step", kinds=self._kinds, left=max(self._total - self._done, 0))

    def paced(self, callback: Any) -> Any:
        """ComfyUI's callback of a step, called with what is computed of all that will be."""
        if not self._bar or callback is None:
            return callback

        def at_its_cost(step: int, denoised: Any, x: Any, steps: int) -> None:
            total = max(self._total, self._done)
            callback(max(self._done, 1) - 1, denoised, x, total or steps)

        return at_its_cost

    def report(self, report: Report) -> None:
        """To the log, to the browser, and into the workflow that save nodes of this run will write."""
        logger.info("ERTA Cache: %s", report.as_text().replace("\n", "; "))
        self._send("report", report=report.as_dict())
        complete_workflow(self._own_pnginfo(), self._node_id, report.plan)

    def _own_pnginfo(self) -> Any:
        """None in a later prompt, which got the node's output from ComfyUI's cache and has a workflow of its own."""
        return self._pnginfo if getattr(running_server(), "last_prompt_id", None) == self._prompt else None

    def _send(self, event: str, **content: Any) -> None:
        server, workflow = running_server(), _entry(_entry(self._own_pnginfo(), "workflow"), "id")
        if server is not None and server.client_id is not None:  # to nobody would mean to every browser
            about = {"node": self._node_id, "prompt": server.last_prompt_id, "workflow": workflow}
            server.send_sync(f"ertacache.{event}", {**about, **content}, server.client_id)


def complete_workflow(extra_pnginfo: dict[str, Any] | None, node_id: str | None, plan: str) -> None:
    """Put the plan into our node's widget in the workflow that save nodes of this run will write.

    It is the last of the node's values: front ends add values of their own before it. Whatever does not look as
    expected is left alone. Later runs get the plan from the browser.
    """
    node = _find_node(_entry(extra_pnginfo, "workflow"), str(node_id).split(":")) if plan else None
    if _entry(node, "type") not in _CARRIERS:
        return
    values, named = _entry(node, "widgets_values"), _entry(node, "widgets_values_named")
    old = values[-1] if isinstance(values, list) and values else None
    if isinstance(old, str) and old.lstrip()[:1] in ("", "{"):  # else a value of a version with other widgets
        values[-1] = plan
    if isinstance(named, dict) and "plan" in named:
        named["plan"] = plan


def _find_node(workflow: Any, path: list[str]) -> dict[str, Any] | None:
    """Follow an execution id ("1:2:3" inside subgraphs) to its node in the UI workflow."""
    subgraphs = _objects(_entry(workflow, "definitions"), "subgraphs")
    graph, node = workflow, None
    for step in path:
        node = next((n for n in _objects(graph, "nodes") if str(n.get("id")) == step), None)
        graph = next((s for s in subgraphs if node is not None and s.get("id") == node.get("type")), None)
    return node


def _objects(holder: Any, name: str) -> list[dict[str, Any]]:
    """The objects in the list of that name; none where a workflow has something else there."""
    found = _entry(holder, name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _entry(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None
