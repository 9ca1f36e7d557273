"""Conversion of workflow files, against node declarations as the server sends them."""

from __future__ import annotations

from typing import Any

import pytest

from ertacache.demo.workflows import WorkflowFormatError, find_node, set_input, ui_to_api

OBJECT_INFO: dict[str, Any] = {
    "Loader": {"display_name": "Load It", "input": {"required": {"name": [["a.safetensors", "b.safetensors"]]}}},
    "KSampler": {
        "display_name": "KSampler",
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler_name": ["COMBO", {"options": ["euler", "heun"]}],
            },
            "optional": {"label": ["STRING", {"default": "", "socketless": True}], "profile": ["ERTA_PROFILE"]},
        },
    },
}


def loader(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "type": "Loader", "mode": 0, "inputs": [], "widgets_values": ["b.safetensors"], **changes}


def sampler(**changes: Any) -> dict[str, Any]:
    node = {
        "id": 2,
        "type": "KSampler",
        "title": "Fast",
        "inputs": [{"name": "model", "type": "MODEL", "link": 7}, {"name": "profile", "link": None}],
        "widgets_values": [42, "randomize", 12, 4.5, "heun", "hello"],
    }
    return {**node, **changes}


LINK = [7, 1, 0, 2, 0, "MODEL"]


def test_widgets_get_their_names_and_links_their_sources():
    api = ui_to_api({"nodes": [loader(), sampler()], "links": [LINK]}, OBJECT_INFO)

    assert api["1"] == {
        "class_type": "Loader",
        "inputs": {"name": "b.safetensors"},
        "_meta": {"title": "Load It"},
    }
    assert api["2"]["inputs"] == {
        "model": ["1", 0],
        "seed": 42,
        "steps": 12,
        "cfg": 4.5,
        "sampler_name": "heun",
        "label": "hello",
    }
    assert api["2"]["_meta"]["title"] == "Fast"


def test_links_of_the_newer_schema_are_objects():
    link = {"id": 7, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}
    api = ui_to_api({"nodes": [loader(), sampler()], "links": [link]}, OBJECT_INFO)
    assert api["2"]["inputs"]["model"] == ["1", 0]


def test_notes_are_left_out():
    notes = [{"id": 8, "type": "Note", "widgets_values": ["hi"]}, {"id": 9, "type": "MarkdownNote"}]
    assert list(ui_to_api({"nodes": [loader(), *notes], "links": []}, OBJECT_INFO)) == ["1"]


def test_a_linked_widget_keeps_its_place_among_the_values():
    inputs = [{"name": "model", "link": 7}, {"name": "steps", "link": 7, "widget": {"name": "steps"}}]
    api = ui_to_api({"nodes": [loader(), sampler(inputs=inputs)], "links": [LINK]}, OBJECT_INFO)
    assert api["2"]["inputs"]["steps"] == ["1", 0]
    assert api["2"]["inputs"]["cfg"] == 4.5


@pytest.mark.parametrize(
    ("declaration", "values", "second"),
    [
        (["INT", {}], [1, "fixed", 2], 2),  # by its name alone
        (["INT", {"control_after_generate": False}], [1, 2], 2),
        ([["x", "y"], {"control_after_generate": True}], ["x", "fixed", "", 2], 2),  # a combo has a filter as well
        (["INT", {"forceInput": True}], [2], 2),  # a socket, no widget
    ],
)
def test_control_after_generate_values_are_skipped(declaration: list[Any], values: list[Any], second: int):
    info = {"N": {"input": {"required": {"noise_seed": declaration, "other": ["INT", {}]}}}}
    api = ui_to_api({"nodes": [{"id": 1, "type": "N", "widgets_values": values}], "links": []}, info)
    assert api["1"]["inputs"]["other"] == second


def test_values_that_an_older_file_lacks_take_the_default():
    api = ui_to_api({"nodes": [sampler(widgets_values=[42, "fixed"], inputs=[])], "links": []}, OBJECT_INFO)
    assert api["2"]["inputs"] == {"seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "label": ""}


def test_values_by_name_are_taken_by_name():
    api = ui_to_api({"nodes": [sampler(widgets_values={"cfg": 1.0}, inputs=[])], "links": []}, OBJECT_INFO)
    assert (api["2"]["inputs"]["cfg"], api["2"]["inputs"]["steps"]) == (1.0, 20)


def test_a_list_value_is_not_mistaken_for_a_link():
    info = {"N": {"input": {"required": {"text": ["STRING", {}]}}}}
    api = ui_to_api({"nodes": [{"id": 1, "type": "N", "widgets_values": [["1", 0]]}], "links": []}, info)
    assert api["1"]["inputs"]["text"] == {"__value__": ["1", 0]}


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([loader(type="Gone")], "no such node type"),
        ([sampler()], "link 7, which does not exist"),
    ],
)
def test_what_cannot_be_converted_is_named(nodes: list[Any], words: str):
    with pytest.raises(WorkflowFormatError, match=words):
        ui_to_api({"nodes": nodes, "links": []}, OBJECT_INFO)


def test_a_control_of_a_seed_may_be_declared_by_its_first_value():
    info = {"N": {"input": {"required": {"value": ["INT", {"control_after_generate": "fixed"}], "more": ["INT", {}]}}}}
    api = ui_to_api({"nodes": [{"id": 1, "type": "N", "widgets_values": [5, "fixed", 6]}], "links": []}, info)
    assert api["1"]["inputs"] == {"value": 5, "more": 6}


@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_muted_and_bypassed_nodes_are_left_out_unless_something_hangs_on_them(mode: int):
    alone = {"nodes": [loader(), sampler(mode=mode)], "links": [LINK]}
    assert list(ui_to_api(alone, OBJECT_INFO)) == ["1"]
    with pytest.raises(WorkflowFormatError, match=r"node 2 \(KSampler\): input 'model' .* muted or bypassed"):
        ui_to_api({"nodes": [loader(mode=mode), sampler()], "links": [LINK]}, OBJECT_INFO)


def test_a_missing_value_without_default_is_named():
    info = {"N": {"input": {"required": {"count": ["INT", {}]}}}}
    with pytest.raises(WorkflowFormatError, match=r"node 1 \(N\).*'count'"):
        ui_to_api({"nodes": [{"id": 1, "type": "N"}], "links": []}, info)


def test_set_input_finds_a_node_by_title_or_class():
    api = ui_to_api({"nodes": [loader(), sampler()], "links": [LINK]}, OBJECT_INFO)
    set_input(api, "Fast", "steps", 3)
    set_input(api, "KSampler", "cfg", 2.0)
    assert (find_node(api, "Fast")["inputs"]["steps"], api["2"]["inputs"]["cfg"]) == (3, 2.0)


def test_set_input_names_what_there_is():
    api = ui_to_api({"nodes": [loader(), sampler(), sampler(id=3)], "links": [LINK]}, OBJECT_INFO)
    with pytest.raises(LookupError, match=r"no input 'stepz'; it has .*steps"):
        set_input({"2": api["2"]}, "Fast", "stepz", 3)
    with pytest.raises(LookupError, match="2 nodes are called 'Fast'"):
        set_input(api, "Fast", "steps", 3)
    with pytest.raises(LookupError, match=r"0 nodes are called 'Slow'.*Load It \(Loader\)"):
        set_input(api, "Slow", "steps", 3)
