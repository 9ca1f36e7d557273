"""The nodes as they declare themselves, and the plan's way into the saved workflow.

The schemas are public: ids and order stay as they are once released. They are compared with schemas.json; after a
change that is meant, write it anew and read the difference before committing it:

    ERTA_RENEW_SCHEMAS=1 python -P -m pytest tests/comfy/test_nodes.py -k snapshot
"""

from __future__ import annotations

import asyncio
import copy
import errno
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from ertacache.erta.profile import Measured

ROOT = Path(__file__).resolve().parents[2]


NODES = ("ERTACachedSampler", "ERTACache", "ERTAProfile", "ERTALoadProfile", "ERTATimestepAdjuster", "ERTACompare")
NODES += ("ERTAOptions",)
SNAPSHOT = Path(__file__).with_name("schemas.json")
# What the snapshot holds of a node: not what newer ComfyUIs may add.
FIELDS = ("input", "input_order", "output", "output_is_list", "output_name", "output_tooltips")
FIELDS += ("name", "display_name", "description", "category", "output_node", "deprecated", "experimental")
# Choices that come from ComfyUI, from the disk or from profiles/presets.json.
LIVE = (
    ("ERTALoadProfile", "name"),
    *((node, name) for node in NODES for name in ("sampler_name", "scheduler", "preset")),
)


@pytest.fixture(scope="session")
def classes(comfy_pack) -> dict[str, Any]:
    async def listed() -> list[Any]:
        return await (await comfy_pack.comfy_entrypoint()).get_node_list()

    return {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(listed())}


def declared(cls: Any) -> dict[str, Any]:
    """The node's /object_info entry, as JSON gives it back, without live choices."""
    info = json.loads(json.dumps({field: cls.GET_NODE_INFO_V1()[field] for field in FIELDS}))
    for group in info["input"].values():
        for name, (_, *options) in group.items():
            if (info["name"], name) in LIVE:
                group[name] = ["COMBO", {**options[0], "options": "live"}]
    return info


def test_snapshot_of_the_schemas(classes):
    found = {name: declared(cls) for name, cls in classes.items()}
    if os.environ.get("ERTA_RENEW_SCHEMAS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8")), __doc__


@pytest.mark.parametrize("name", NODES)
def test_a_node_explains_itself(classes, name):
    schema = classes[name].GET_SCHEMA()  # finalizes and validates, and raises where ids collide
    assert schema.description and schema.display_name and schema.category == "ERTACache"
    for one in (*schema.inputs, *schema.outputs):
        assert one.tooltip, one
    assert all(output.display_name for output in schema.outputs)
    assert not {one.id for one in schema.inputs} & {one.id for one in schema.outputs}


def test_the_nodes_are_these_in_this_order(classes):
    assert tuple(classes) == NODES


def test_a_node_that_reads_its_own_id_is_run_for_each_of_its_copies(classes):
    """ComfyUI gives two equal nodes one run unless they say otherwise, and the report would name the wrong one."""
    for cls in classes.values():
        schema = cls.GET_SCHEMA()
        reads_id = "unique_id" in {hidden.name for hidden in schema.hidden or []}
        assert schema.not_idempotent or not reads_id


def test_a_schema_costs_little(classes):
    """ComfyUI asks for it at every validation of a prompt."""
    for name, cls in classes.items():
        started = time.perf_counter()
        for _ in range(10):
            cls.define_schema()
        assert (time.perf_counter() - started) / 10 < 0.02, name


def test_the_sampler_has_ksamplers_inputs_with_the_same_limits(classes, comfy):
    import nodes

    ours = classes["ERTACachedSampler"].GET_NODE_INFO_V1()["input"]["required"]
    theirs = nodes.KSampler.INPUT_TYPES()["required"]
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, (kind, *options) in theirs.items():
        mine = ours[name][1]
        if isinstance(kind, str):
            assert ours[name][0] == kind
            assert {mine.get(limit) for limit in ("min", "max")} == {options[0].get(limit) for limit in ("min", "max")}
        else:
            assert mine["options"] == kind


def test_the_import_is_quick_silent_and_computes_nothing(comfy_pack, capfd, caplog):
    """Once more under another name, in a process that has ComfyUI already."""

    class NoTorch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            raise AssertionError(f"{function} at import")

    spec = importlib.util.spec_from_file_location("fresh", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["fresh"] = module
    capfd.readouterr()
    caplog.clear()
    try:
        with NoTorch():
            started = time.perf_counter()
            spec.loader.exec_module(module)
            seconds = time.perf_counter() - started
    finally:
        for name in [name for name in sys.modules if name == "fresh" or name.startswith("fresh.")]:
            del sys.modules[name]
    assert seconds < 0.5
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_every_preset_is_what_its_name_says(comfy_pack):
    from ertacache.comfy_erta.presets import preset_names, preset_steps

    names = preset_names()
    assert names and len(set(names)) == len(names)
    for name in names:
        compute, steps = preset_steps(name)
        assert name.endswith(f"_{len(compute)}of{steps}")
        assert compute[0] == 0 and max(compute) < steps
        assert sorted(set(compute)) == list(compute)
    assert preset_steps("none") == ((), 0)
    for value in ("nonsense", 7, None, 1.5, True, ["none"], {"none": 1}):
        with pytest.raises(ValueError, match=re.escape(f"preset {str(value)!r} does not ship")) as caught:
            preset_steps(value)
        assert f"choose one of none, {names[0]}, " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("without_profile", "nothing", "without_profile is 'nothing'; it must be one of record, built-in plan"),
        ("without_profile", ["record"], "without_profile is"),
        ("preset", 7, "preset '7' does not ship"),
        ("level", "deep", "level is 'deep'; it must be one of auto, output, blocks"),
        ("threshold", "0.1", "threshold is '0.1'"),
        ("threshold", float("nan"), "threshold is 'nan'"),
        ("protect_start", 1.5, "protect_start is '1.5'"),
        ("protect_end", -1, "protect_end is '-1'"),
        ("check", "yes", "check is 'yes'"),
        ("offload", 1, "offload is '1'"),
        ("predictor", "spline", "predictor is 'spline'"),
        ("mode", 7, "mode is '7'"),
    ],
)
def test_a_value_that_is_no_option_is_refused_by_name(classes, name, value, message):
    """By a link or in a prompt of another program; by the node that has the input."""
    with pytest.raises(ValueError, match=re.escape(message)):
        classes["ERTAOptions"].execute(**{"mode": "paper", name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("plan", 7, "plan is '7'; it must be a text"),
        ("plan", None, "plan is 'None'"),
        ("profile", "wan", "profile is 'wan'; it must be connected to ERTA Profile"),
        ("profile", {"name": "wan"}, "profile is"),
        ("options", {"mode": "paper"}, "options is"),
        ("options", "paper", "options is 'paper'; it must be connected to ERTA Options"),
        ("speed", None, "speed is 'None'"),
        ("speed", float("nan"), "speed is 'nan'"),
    ],
)
def test_a_value_that_is_none_of_its_input_is_refused_by_name(comfy_pack, name, value, message):
    """Before the model is looked at."""
    from ertacache.nodes.sampling import _caching

    with pytest.raises(ValueError, match=re.escape(message)):
        _caching(None, {"speed": 2.0, name: value}, None)


def test_options_are_what_they_say_and_their_defaults_are_no_options(classes):
    from ertacache.erta.settings import Settings
    from ertacache.nodes.options import Options, options_of

    def settings_of(**chosen: Any) -> Settings:
        return options_of(classes["ERTAOptions"].execute(**chosen).result[0]).settings(2.0)

    declared = {made.id: made.default for made in classes["ERTAOptions"].define_schema().inputs}
    assert settings_of() == settings_of(**declared) == options_of(None).settings(2.0) == Settings(2.0)
    assert Options.of().values == declared
    paper = settings_of(mode="paper", threshold=0.08)
    assert paper == Settings(2.0, mode="paper", timesteps=True, threshold=0.08)
    assert settings_of(threshold=0.08) == Settings(2.0), "only paper mode has a threshold"
    chosen = {"level": "blocks", "predictor": "linear", "check": False, "protect_start": 3, "protect_end": 2}
    assert settings_of(**chosen) == Settings(2.0, **chosen)
    assert settings_of(preset="lemica_qwen_image_10of50").preset_steps == 50


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP])
def test_a_dead_store_does_not_keep_the_nodes_from_loading(classes, monkeypatch, number):
    def dead(folder):
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(os, "scandir", dead)
    for cls in classes.values():
        assert cls.define_schema().node_id
    assert classes["ERTALoadProfile"].define_schema().inputs[0].options == ["none"]
    assert classes["ERTALoadProfile"].validate_inputs("wan") is True, "the run says that it is missing"
    for name in (7, None, ["wan"], 1.5, "../wan", ""):
        assert f"profile name {name!r}" in classes["ERTALoadProfile"].validate_inputs(name)


@pytest.mark.parametrize(
    ("model_class", "parameters", "remarked"),
    [
        ("WAN21", 1_418_996_800, False),
        ("WAN21", 1_480_000_000, False),
        ("WAN21", 14_288_491_584, True),
        ("Flux", 1_418_996_800, True),
    ],
    ids=["its own", "with a LoRA", "the larger one", "another class"],
)
def test_a_preset_on_another_model_than_its_own_is_remarked(comfy_pack, model_class, parameters, remarked):
    from ertacache.comfy_erta.presets import preset_remarks, preset_steps

    here = Measured(
        model_class,
        parameters,
        "0" * 64,
        "",
        "s",
        8.0,
        "euler",
        "simple",
        50,
        6.0,
        (1, 16, 21, 60, 104),
        "output",
        "0",
        "0",
    )
    remarks = preset_remarks(*preset_steps("lemica_wan2.1_t2v_1.3b_20of50"), here)
    assert [(one.code, one.values["models"], one.values["model_class"]) for one in remarks] == [
        ("preset_other_model", "Wan2.1 T2V 1.3B", model_class)
    ] * remarked
    assert preset_remarks((0, 3, 7), 12, here) == (), "nobody's list"
    shared = preset_remarks(*preset_steps("lemica_qwen_image_10of50"), here)
    assert [one.values["models"] for one in shared] == ["FLUX.1 dev and Qwen-Image"]


def workflow(node_type: str = "ERTACachedSampler") -> dict[str, Any]:
    """UI format: a sampler as node 7, and one as node 2 of a subgraph in a subgraph, executed as 1:5:2."""
    values = [0, "fixed", ""]
    sampler = {"type": node_type, "widgets_values": values, "widgets_values_named": {"plan": "", "seed": 0}}
    return {
        "nodes": [{"id": 1, "type": "outer"}, {"id": 7, **copy.deepcopy(sampler)}],
        "definitions": {
            "subgraphs": [
                {"id": "outer", "nodes": [{"id": 5, "type": "inner"}]},
                {"id": "inner", "nodes": [{"id": 2, **copy.deepcopy(sampler)}]},
            ]
        },
    }


def complete(extra_pnginfo: Any, node_id: Any, plan: str = "the plan") -> None:
    from ertacache.comfy_erta.browser import complete_workflow

    complete_workflow(extra_pnginfo, node_id, plan)


@pytest.mark.parametrize("node_type", ["ERTACachedSampler", "ERTACache"])
def test_the_plan_reaches_the_nodes_widget(comfy_pack, node_type):
    saved = workflow(node_type)
    complete({"workflow": saved}, "7")
    assert saved["nodes"][1]["widgets_values"] == [0, "fixed", "the plan"]
    assert saved["nodes"][1]["widgets_values_named"] == {"plan": "the plan", "seed": 0}
    assert saved["definitions"] == workflow(node_type)["definitions"]


def test_the_place_of_the_plan_is_that_of_its_widget(comfy_pack):
    """The last of the node's widgets."""
    from ertacache.nodes.sampling import ERTACache, ERTACachedSampler

    for node in (ERTACachedSampler, ERTACache):
        assert node.define_schema().inputs[-1].id == "plan"


def test_the_plan_reaches_a_node_in_nested_subgraphs(comfy_pack):
    saved = workflow()
    complete({"workflow": saved}, "1:5:2")
    inner = saved["definitions"]["subgraphs"][1]["nodes"][0]
    assert inner["widgets_values"][-1] == inner["widgets_values_named"]["plan"] == "the plan"
    assert saved["nodes"] == workflow()["nodes"]


@pytest.mark.parametrize("node_id", ["8", "1:5:3", "1:9:2", "7:2", "1:5", "", None])
def test_another_id_changes_nothing(comfy_pack, node_id):
    saved = workflow()
    complete({"workflow": saved}, node_id)
    assert saved == workflow()


def test_a_foreign_node_and_an_empty_plan_change_nothing(comfy_pack):
    foreign, ours = workflow("KSampler"), workflow()
    complete({"workflow": foreign}, "7")
    complete({"workflow": ours}, "7", "")
    assert foreign == workflow("KSampler") and ours == workflow()


@pytest.mark.parametrize(
    "values", [None, [], [0], [0, "fixed", 3], [0, "none"], [0, "a preset"], ["", True], {"plan": ""}, "text"]
)
def test_widget_values_of_another_form_are_left_alone(comfy_pack, values):
    saved = workflow()
    saved["nodes"][1]["widgets_values"] = values
    complete({"workflow": saved}, "7")
    assert saved["nodes"][1]["widgets_values"] == values


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["outer", "inner", "7"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "nodes"]), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_workflow_makes_it_raise(comfy_pack, data):
    """A workflow in which any one part is replaced by anything."""
    root = {"root": {"workflow": workflow()}}
    place: Any = root
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(ANYTHING)
    complete(root["root"], data.draw(st.sampled_from(["7", "1:5:2", "1", None])))


@pytest.mark.parametrize("node", ["ERTACachedSampler", "ERTACache"])
def test_who_searches_for_a_cache_finds_them(classes, node):
    found = vars(classes[node].define_schema()).get("search_aliases")
    if found is None:
        pytest.skip("this ComfyUI has no search aliases")
    assert {"cache", "faster", "speed", "teacache", "easycache", "magcache", "wan"} <= set(found)
    assert classes[node].GET_NODE_INFO_V1()["search_aliases"] == found
