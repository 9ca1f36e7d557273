"""In a loop ComfyUI runs copies of the nodes that are drawn. The browser and the workflow only know the drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ertacache.demo.server import ComfyServer
from ertacache.tests.server.test_nodes import Bench, as_drawn, make_bench, node, save, with_cache
from ertacache.tests.server.test_soak import one_thread

__all__ = ["make_bench", "one_thread"]  # fixtures

# The least of a loop: its body is the sampler and, where it has one, its ERTA Cache.
LOOP = """
from comfy_execution.graph_utils import GraphBuilder, is_link


class Twice:
    INPUT_TYPES = classmethod(lambda cls: {
        "required": {"body": ("LATENT", {"rawLink": True, "lazy": True})}, "hidden": {"dynprompt": "DYNPROMPT"},
    })
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "test"

    def run(self, body, dynprompt):
        graph, latent = GraphBuilder(), None

        def copied(drawn, turn):
            node = dynprompt.get_node(drawn)
            copy = graph.node(node["class_type"], f"{drawn}{turn}")
            copy.set_override_display_id(drawn)
            for name, value in node["inputs"].items():
                inside = is_link(value) and dynprompt.get_node(value[0])["class_type"] == "ERTACache"
                copy.set_input(name, copied(value[0], turn).out(value[1]) if inside else value)
            return copy

        for turn in range(2):
            sampler = copied(body[0], turn)
            if latent:
                sampler.set_input("latent_image", latent)
            latent = sampler.out(0)
        return {"result": (latent,), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {"TestTwice": Twice}
"""


@pytest.fixture(scope="module")
def server(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with a node that expands."""
    pack = tmp_path_factory.mktemp("loop")
    (pack / "__init__.py").write_text(LOOP)
    with ComfyServer(nodes={"loop": pack}) as running:
        yield running


@pytest.mark.parametrize("kind", ["sampler", "patch"])
def test_each_turn_of_a_loop_is_the_drawn_nodes(make_bench: Callable[[], Bench], kind: str):
    bench = make_bench()
    graph = with_cache(kind)
    graph[kind]["inputs"]["without_profile"] = "built-in plan"
    outputs = bench.run(
        as_drawn(kind), **{**graph, "loop": node("TestTwice", body=["sampler", 0]), "save": save("loop")}
    )
    reports = bench.heard("ertacache.report")
    assert len(reports) == 2 and reports[0] != reports[1]
    for event in (*bench.heard("ertacache.plan"), *bench.heard("ertacache.step"), *reports):
        assert event["node"] == kind
    (drawn,) = bench.workflow(outputs)["nodes"]
    assert drawn["widgets_values"][-1] == reports[1]["report"]["plan"] != ""
