"""Draws workflows in ComfyUI's UI format: boxes in titled columns, linked by name.

Whoever draws says what is on the canvas; this places the nodes, numbers the links, and puts the widgets into the order
that the server's own description of its nodes gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..workflows import declared_inputs, is_widget

SPACE, TITLE = 30, 30  # between nodes, and the height of a node's title bar
ALWAYS, BYPASSED = 0, 4  # how ComfyUI counts the modes of a node


@dataclass(frozen=True)
class Column:
    """A group, and the lanes of nodes in it, each of this width. Nodes of a bypassed one do not run."""

    title: str
    left: int
    width: int
    lanes: int = 1
    bypassed: bool = False

    @property
    def whole(self) -> int:
        """The width of all its lanes."""
        return self.lanes * (self.width + SPACE) - SPACE


@dataclass(frozen=True)
class Box:
    """A node: `inputs` holds values by name, and (title of another box, its output) for links.

    `after_run` is what happens to its seed, if it has one; `properties` go into the file as they are. `lane`: in which
    lane of its group it stands.
    """

    group: str
    title: str
    type: str
    height: int
    inputs: dict[str, Any] = field(default_factory=dict)
    after_run: str = "fixed"
    properties: dict[str, Any] = field(default_factory=dict)
    lane: int = 0


@dataclass(frozen=True)
class Words:
    """A note. `type` is Note, or MarkdownNote where it is to be read with headings and links."""

    group: str
    text: str
    height: int
    type: str = "Note"


def workflow(
    columns: Sequence[Column], boxes: Sequence[Box], words: Words, object_info: Mapping[str, Any]
) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format: the boxes below each other in their lanes, the note last."""
    ids = {box.title: number for number, box in enumerate(boxes, start=1)}
    at = {column.title: column for column in columns}
    tops = {(column.title, lane): 0 for column in columns for lane in range(column.lanes)}
    links: list[list[Any]] = []
    nodes = []
    for box in boxes:
        frame = _frame(ids[box.title], box.type, box.title, at[box.group], tops[box.group, box.lane], box.height)
        frame["pos"][0] += box.lane * (at[box.group].width + SPACE)
        nodes.append(_node(box, frame, object_info[box.type], ids, links))
        tops[box.group, box.lane] += box.height + TITLE + SPACE
    for _, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"] = [link[0] for link in links if link[1:3] == [source, slot]]
    nodes.append(_note(words, len(nodes) + 1, at[words.group], tops[words.group, 0]))
    tops[words.group, 0] += words.height + TITLE + SPACE
    bottoms = {title: max(top for (group, _), top in tops.items() if group == title) for title in at}
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [_group(number, column, bottoms[column.title]) for number, column in enumerate(columns, start=1)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def text(content: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _frame(number: int, kind: str, title: str, column: Column, top: int, height: int) -> dict[str, Any]:
    size = [column.width, height]
    return {
        "id": number,
        "type": kind,
        "pos": [column.left, top],
        "size": size,
        "flags": {},
        "order": number - 1,
        "mode": BYPASSED if column.bypassed else ALWAYS,
        "title": title,
    }


def _node(
    box: Box, frame: dict[str, Any], info: Mapping[str, Any], ids: dict[str, int], links: list[list[Any]]
) -> dict[str, Any]:
    """The node's entry; its links are appended to `links`, in the order of its sockets."""
    _check_names(box, info)
    sockets: list[dict[str, Any]] = []
    for name, kind, options in declared_inputs(info):
        widget, source = is_widget(kind, options), box.inputs.get(name)
        if widget and not isinstance(source, tuple):
            continue
        socket = {"name": name, "type": kind, "link": None}
        if widget:
            socket["widget"] = {"name": name}
        if source is not None:
            title, slot = source
            links.append([len(links) + 1, ids[title], slot, frame["id"], len(sockets), kind])
            socket["link"] = len(links)
        sockets.append(socket)
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {
        **frame,
        "inputs": sockets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": {"Node name for S&R": box.type, **box.properties},
        "widgets_values": list(_widget_values(box, info)),
    }


def _check_names(box: Box, info: Mapping[str, Any]) -> None:
    known = {name for name, *_ in declared_inputs(info)}
    for name in box.inputs:
        if name not in known:
            raise ValueError(f"{box.title} ({box.type}) has no input {name!r}; it has {', '.join(sorted(known))}")


def _widget_values(box: Box, info: Mapping[str, Any]) -> Iterator[Any]:
    """In the order of the widgets. A linked one keeps its place, with its default."""
    for name, kind, options in declared_inputs(info):
        if not is_widget(kind, options):
            continue
        choices = kind if isinstance(kind, list) else options.get("options", [None])
        value = box.inputs.get(name)
        if value is None or isinstance(value, tuple):
            value = options["default"] if "default" in options else choices[0]
        yield value
        if options.get("control_after_generate"):
            yield box.after_run


def _note(words: Words, number: int, column: Column, top: int) -> dict[str, Any]:
    return {
        **_frame(number, words.type, "About", column, top, words.height),
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [words.text],
        "color": "#432",
        "bgcolor": "#653",
    }


def _group(number: int, column: Column, bottom: int) -> dict[str, Any]:
    bounding = [column.left - 15, -TITLE - 45, column.whole + 30, bottom + 45]
    return {
        "id": number,
        "title": column.title,
        "bounding": bounding,
        "color": "#3f789e",
        "font_size": 24,
        "flags": {},
    }
