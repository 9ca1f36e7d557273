"""Workflow files as a person sees them, and as the server wants them.

A workflow saved in the browser (UI format) lists widget values by position; the server's API format names every input.
The browser converts on every run. Here the same is done without one, so that the demo runs the very files that can be
dragged into ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .client import API

NOTES = ("Note", "MarkdownNote")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
ALWAYS = 0  # the mode of a node that is neither muted (2) nor bypassed (4)


class WorkflowFormatError(ValueError):
    """The workflow cannot be converted; the message names the node and says why."""


def ui_to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> API:
    """Convert UI format to API format. `object_info` is the server's description of its node types, by id.

    Muted and bypassed nodes are left out. Subgraphs, reroutes and what hangs on a node that is left out are refused
    rather than guessed at.
    """
    sources = dict(_links(workflow.get("links", [])))
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    left_out = {str(node["id"]) for node in nodes if node.get("mode", ALWAYS) != ALWAYS}
    api = {str(node["id"]): _convert(node, object_info, sources) for node in nodes if str(node["id"]) not in left_out}
    for number, node in api.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in left_out:
                label = f"node {number} ({node['class_type']})"
                raise WorkflowFormatError(f"{label}: input {name!r} comes from a node that is muted or bypassed.")
    return api


def set_input(api: API, node: str, name: str, value: Any) -> None:
    """Set one input of the one node that has `node` as its title or class_type. A link may be replaced by a value."""
    inputs = find_node(api, node)["inputs"]
    if name not in inputs:
        raise LookupError(f"{node!r} has no input {name!r}; it has {', '.join(sorted(inputs))}")
    inputs[name] = value


def give_options(api: API, node: str, **chosen: Any) -> None:
    """Connect an ERTA Options with these choices to the node of this id; one that is connected gets them too."""
    at = api[node]["inputs"].setdefault("options", [f"{node}-options", 0])[0]
    title = {"_meta": {"title": "ERTA Options"}}
    api.setdefault(at, {"class_type": "ERTAOptions", "inputs": {}, **title})["inputs"].update(chosen)


def find_node(api: API, node: str) -> dict[str, Any]:
    """The one node with this title or class_type."""
    found = [entry for entry in api.values() if node in (entry["class_type"], entry["_meta"]["title"])]
    if len(found) != 1:
        there = ", ".join(sorted(f"{entry['_meta']['title']} ({entry['class_type']})" for entry in api.values()))
        raise LookupError(f"{len(found)} nodes are called {node!r}, expected one. There are: {there}")
    return found[0]


def _convert(
    node: Mapping[str, Any], object_info: Mapping[str, Any], sources: Mapping[int, list[Any]]
) -> dict[str, Any]:
    label = f"node {node['id']} ({node['type']})"
    if node["type"] not in object_info:
        raise WorkflowFormatError(f"{label}: the server has no such node type. Is its pack loaded?")
    info = object_info[node["type"]]
    inputs = dict(_widget_inputs(label, declared_inputs(info), node.get("widgets_values") or []))
    for socket in node.get("inputs", []):
        if socket.get("link") is not None:
            inputs[socket["name"]] = _source(label, socket, sources)
    title = node.get("title") or info.get("display_name") or node["type"]
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}


def _links(links: list[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Link id -> [source node, source slot], from either of the two notations."""
    for link in links:
        if isinstance(link, Mapping):
            yield link["id"], [str(link["origin_id"]), link["origin_slot"]]
        else:
            yield link[0], [str(link[1]), link[2]]


def _source(label: str, socket: Mapping[str, Any], sources: Mapping[int, list[Any]]) -> list[Any]:
    if socket["link"] not in sources:
        raise WorkflowFormatError(f"{label}: input {socket['name']!r} has link {socket['link']}, which does not exist.")
    return list(sources[socket["link"]])


def declared_inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of every input, in the order in which the browser makes its widgets."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            yield name, kind, rest[0] if rest else {}


def _widget_inputs(
    label: str, declared: Iterator[tuple[str, Any, dict[str, Any]]], saved: list[Any] | Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Names for the saved values. A linked widget keeps its place in the list; the link overrides it later.

    Values left over belong to widgets that the front end added (upload buttons, plots). Too few is an older file: the
    node has gained an input since, and takes its default as it would in the browser.
    """
    position = 0
    for name, kind, options in declared:
        if not is_widget(kind, options):
            continue
        if isinstance(saved, Mapping):
            value = saved[name] if name in saved else _default(label, name, kind, options)
        else:
            value = saved[position] if position < len(saved) else _default(label, name, kind, options)
            position += 1 + _control_widgets(name, kind, options)
        # A list would read as a link.
        yield name, {"__value__": value} if isinstance(value, list) else value


def is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def _control_widgets(name: str, kind: Any, options: Mapping[str, Any]) -> int:
    """How many "control after generate" values follow in the list: for a combo there is a filter as well."""
    if kind == "INT":
        # Newer declarations name the control's first value instead of saying true.
        return int(bool(options.get("control_after_generate", name in ("seed", "noise_seed"))))
    is_combo = isinstance(kind, list) or kind == "COMBO"
    return 2 if is_combo and options.get("control_after_generate") else 0


def _default(label: str, name: str, kind: Any, options: Mapping[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    if not choices:
        raise WorkflowFormatError(f"{label}: the file has no value for {name!r}, and the node declares no default.")
    return choices[0]
