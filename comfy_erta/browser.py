"""What the browser gets: live progress, the report of a model patch, and the plan in the saved workflow."""

import logging
import time
from typing import Any

from ..erta.schedules import as_text
from .report import Report
from .task import Start

logger = logging.getLogger("ertacache")

_INTERVAL = 0.1  # seconds between live events: more than 10 a second only costs
_CARRIERS = ("ERTACachedSampler", "ERTACache")  # the nodes with a widget for the plan


class Progress:
    """Watcher that sends the plan, then which calls were computed or reused, at most ten times a second."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._sent = 0.0
        self._kinds = ""

    def begin(self, start: Start) -> None:
        self._kinds = ""
        compute = as_text(start.plan.compute) if start.plan else "1" * len(start.sigmas)
        _send("ertacache.plan", {"node": self._node_id, "compute": compute, "sigmas": list(start.sigmas)})

    def called(self, i: int, computed: bool) -> None:
        """Send what the model calls so far were, unless that was done a moment ago."""
        self._kinds += "1" if computed else "0"
        if time.monotonic() - self._sent >= _INTERVAL:
            self._sent = time.monotonic()
            _send("ertacache.step", {"node": self._node_id, "kinds": self._kinds})


def send_report(node_id: str | None, report: Report) -> None:
    """To the log and to the browser: a model patch has returned long before its sampling runs."""
    logger.info("ERTA Cache: %s", report.as_text().replace("\n", "; "))
    _send("ertacache.report", {"node": node_id, "report": report.as_dict()})


def _send(event: str, content: dict[str, Any]) -> None:
    from server import PromptServer  # ComfyUI's; there is none where its nodes run without a server

    running = getattr(PromptServer, "instance", None)
    if running is not None and running.client_id is not None:  # to nobody would mean to every browser
        running.send_sync(event, content, running.client_id)


def complete_workflow(extra_pnginfo: dict[str, Any] | None, node_id: str | None, plan: str, place: int) -> None:
    """Put the plan into our node's widget in the workflow that save nodes of this run will write.

    Later runs get it from the browser, which fills the widget; this is for the file of the first one. ``place``: of
    the widget among the node's values, from the end, since front ends add values of their own before it. Whatever does
    not look as expected is left alone.
    """
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    node = _find_node(workflow, str(node_id).split(":")) if plan else None
    if node is None or node.get("type") not in _CARRIERS:
        return
    values = node.get("widgets_values")
    old = values[place] if isinstance(values, list) and len(values) >= -place else None
    if isinstance(old, str) and old.lstrip()[:1] in ("", "{"):  # else a value of a version with other widgets
        values[place] = plan
    named = node.get("widgets_values_named")
    if isinstance(named, dict) and "plan" in named:
        named["plan"] = plan


def _find_node(workflow: Any, path: list[str]) -> dict[str, Any] | None:
    """Follow an execution id ("1:2:3" inside subgraphs) to its node in the UI workflow."""
    subgraphs = _objects(workflow.get("definitions") if isinstance(workflow, dict) else None, "subgraphs")
    graph, node = workflow, None
    for step in path:
        node = next((n for n in _objects(graph, "nodes") if str(n.get("id")) == step), None)
        graph = next((s for s in subgraphs if node is not None and s.get("id") == node.get("type")), None)
    return node


def _objects(holder: Any, name: str) -> list[dict[str, Any]]:
    """The objects in the list of that name; none where a workflow has something else there."""
    found = holder.get(name) if isinstance(holder, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
