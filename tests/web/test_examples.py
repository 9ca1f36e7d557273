"""example_workflows/ in a real browser: each file is dropped, shows whole, and says what the file says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ertacache.demo.graphs.draw import TITLE
from ertacache.demo.graphs.examples import stand_ins
from ertacache.demo.server import ComfyServer
from ertacache.demo.workflows import declared_inputs, ui_to_api
from ertacache.tests.server.test_examples import NAMES, missing, read, refused

# Missing nodes get a dialog or a panel, depending on the front end; their types are never registered.
MISSING = """() => [
  ...app.graph.nodes.filter(({ type }) => !LiteGraph.registered_node_types[type]).map(({ type }) => type),
  ...[...document.querySelectorAll("[role=dialog]")].map((dialog) => dialog.textContent),
]"""
# With its title, and in pixels where the browser lays it out.
SIZES = """() => Object.fromEntries(app.graph.nodes.map((node) => {
  if (!LiteGraph.vueNodesMode) return [node.id, [node.size[0], node.size[1] + LiteGraph.NODE_TITLE_HEIGHT]];
  const { width, height } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
  return [node.id, [width, height]];
}))"""
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a combo with inputs of its own, newer than the demo's converter


@pytest.fixture(scope="module", autouse=True)
def stocked(profiled: ComfyServer) -> Iterator[None]:
    """A file for each model that an example names, from before the browser asks which there are."""
    with stand_ins(profiled.base, profiled.comfy):
        yield


def test_each_example_is_shown_whole_and_asks_for_what_it_says(tab: Any, profiled: ComfyServer):
    """One tab for all of them. A file with a strange node comes last, so that what looks for one is seen to work."""
    object_info, asked = profiled.client.object_info(), {}
    for name in NAMES:
        if missing(name, object_info):
            continue  # opened by a newer ComfyUI, which the file's note asks for
        content = read(name)
        tab.drop(f"{name}.json", content)
        tab.page.wait_for_function(f"app.graph.nodes.length === {len(content['nodes'])}")
        assert tab.evaluate(MISSING) == [], name
        asked[name] = tab.prompt()
        assert known(asked[name], object_info) == known(ui_to_api(content, object_info), object_info), name
        assert too_large(tab, content) == [], name
    assert refused(profiled, asked) == {}
    content["nodes"][0]["type"] = "NobodyHasThis"
    tab.drop("strange.json", content)
    assert tab.evaluate(MISSING)[0] == "NobodyHasThis"


def known(api: dict[str, Any], object_info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Types and inputs by node, without combos that only the browser can convert."""
    return {number: (node["class_type"], _plain(node, object_info)) for number, node in api.items()}


def _plain(node: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    kinds = {name: kind for name, kind, _ in declared_inputs(object_info[node["class_type"]])}
    return {name: value for name, value in node["inputs"].items() if kinds.get(name.partition(".")[0]) != DYNAMIC}


def too_large(tab: Any, content: dict[str, Any]) -> list[str]:
    """Nodes that take more room than they were drawn with. A renderer may enlarge the whole canvas."""
    tab.page.wait_for_timeout(300)
    sizes, found = tab.evaluate(SIZES), []
    for node in content["nodes"]:
        width, height = sizes[str(node["id"])]
        room = (node["size"][1] + TITLE) * width / node["size"][0]
        if height > room + 2:
            found.append(f"{node['title']}: {height:.0f} of {room:.0f}")
    return found
