"""example_workflows/: drawn from what the nodes declare now, whole, tidy, and taken by a real server.

The weights are not here, so the server checks the prompts against empty files of the same names and runs none of them,
except for the demo's own workflow, which renders.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from ertacache.demo.comfyui import VERSION, version
from ertacache.demo.graphs.draw import ALWAYS, TITLE, Box, Column, Words, text
from ertacache.demo.graphs.draw import workflow as draw
from ertacache.demo.graphs.examples import FILES, FOLDER, NEWER, NOT_RENDERED, examples, stand_ins, workflow
from ertacache.demo.server import ComfyServer, PromptError
from ertacache.demo.workflows import NOTES, declared_inputs, find_node, set_input, ui_to_api

NAMES = tuple(examples())
GRAPHS = FOLDER.parent / "demo" / "graphs"
LARGEST = 120_000  # bytes of a thumbnail

# What ComfyUI's own templates and blueprints have, as of November 2026, with their few-step LoRAs off. A set: several
# nodes have different values, or none has one.
WAN_TEXT, QWEN_TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors"
CLIP = {"width": 832, "height": 480, "length": 33}
SQUARE = {"width": 640, "height": 640, "length": 81}
WAN21 = {"shift": 8.0, "steps": 20, "cfg": 6.0, "sampler_name": "uni_pc", "clip_name": WAN_TEXT}
WAN22 = {"shift": 5.0, "steps": 20, "cfg": 3.5, "sampler_name": "euler", "clip_name": WAN_TEXT, **SQUARE}
LORA = {"steps": 4, "cfg": 1.0, "shift": 5.0, "sampler_name": "euler", "scheduler": "simple", "strength_model": 1.0}
H3 = {"steps": 20, "sampler_name": "res_multistep", "length": 124, "fps": 24.0}
IMAGE = {"steps": 20, "sampler_name": "euler"}
OFFICIAL = {
    "wan2.1_t2v_1.3B": {**WAN21, **CLIP, "steps": 30},
    "wan2.1_t2v_14B": {**WAN21, **CLIP, "steps": 30},
    "wan2.1_i2v_480p": {**WAN21, "width": 512, "height": 512, "length": 33},
    "wan2.1_vace": {**WAN21, "width": 768, "height": 768, "length": 81, "clip_name": "umt5_xxl_fp16.safetensors"},
    "wan2.2_t2v": WAN22,
    "wan2.2_i2v": WAN22,
    "wan2.2_t2v_low_noise_lora": {**WAN22, "steps": {20, 4}, "cfg": {3.5, 1.0}},
    "wan2.2_i2v_low_noise_lora": {**WAN22, "steps": {20, 4}, "cfg": {3.5, 1.0}},
    "minimax_h3_t2v": {**H3, "width": 864, "height": 480},
    "minimax_h3_i2v": {**H3, "width": 640, "height": 640},
    "flux_dev": {**IMAGE, "cfg": 1.0, "guidance": 3.5, "width": 1024, "height": 1024},
    "hunyuan_video": {**IMAGE, "shift": 7.0, "guidance": 6.0, **CLIP, "width": 848, "length": 73},
    "hunyuan_video_1.5": {
        **IMAGE,
        **{"shift": 7.0, "cfg": 6.0, "width": 1280, "height": 720, "length": 121, "fps": 24.0},
        **{"clip_name1": QWEN_TEXT, "clip_name2": "byt5_small_glyphxl_fp16.safetensors"},
    },
    "flux2_dev": {**IMAGE, "guidance": 4.0, "width": 1024, "height": 1024, "scheduler": set()},
    "measure_on_your_machine": {**WAN21, **CLIP, "steps": {30, 15}, "speed": {1.0, 1.5, 2.0}},
    "qwen_image": {**IMAGE, "shift": 3.1, "cfg": 4.0, "clip_name": QWEN_TEXT, "width": 1328, "height": 1328},
}


@pytest.fixture(scope="module")
def stocked(server: ComfyServer) -> Iterator[ComfyServer]:
    """The server with a file for each model that an example names."""
    with stand_ins(server.base, server.comfy):
        yield server


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict[str, Any]:
    return server.client.object_info()


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def described(name: str) -> str:
    return str(next(node for node in read(name)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0])


def switched(name: str) -> dict[str, Any]:
    """With bypassed nodes on."""
    content = read(name)
    return {**content, "nodes": [{**node, "mode": ALWAYS} for node in content["nodes"]]}


def missing(name: str, object_info: dict[str, Any]) -> set[str]:
    """Nodes of an example for a newer ComfyUI that this one lacks."""
    return ({node["type"] for node in nodes_of(name)} - set(object_info)) if examples()[name].needs else set()


def skip_unless_there(name: str, object_info: dict[str, Any]) -> None:
    lacks = missing(name, object_info)
    if lacks:
        pytest.skip(f"needs ComfyUI {examples()[name].needs}: this one has no {', '.join(sorted(lacks))}")


def nodes_of(name: str) -> list[dict[str, Any]]:
    return [node for node in read(name)["nodes"] if node["type"] not in NOTES]


def converted(name: str, object_info: dict[str, Any], whole: bool = False) -> dict[str, Any]:
    """As the server wants it; whole: with bypassed nodes on. Combos with inputs of their own are newer than the demo's
    converter."""
    known = {**NEWER["nodes"], **object_info}
    kinds = [kind for node in nodes_of(name) for _, kind, _ in declared_inputs(known[node["type"]])]
    if "COMFY_DYNAMICCOMBO_V3" in kinds:
        pytest.skip("only the browser converts this ComfyUI's combos: tests/web/test_examples.py has it do so")
    return ui_to_api(switched(name) if whole else read(name), known)


@contextlib.contextmanager
def occupied(server: ComfyServer) -> Iterator[None]:
    """The server at a run that would take minutes: what is queued behind it is checked, and does not begin."""
    api = ui_to_api(json.loads((GRAPHS / "full.json").read_text(encoding="utf-8")), server.client.object_info())
    set_input(api, "KSampler", "steps", 10000)
    server.client.queue(api)
    try:
        yield
    finally:
        server.client._request("/queue", {"clear": True})
        while json.loads(server.client._request("/queue"))["queue_running"]:
            server.client.interrupt()
            time.sleep(0.05)


def refused(server: ComfyServer, prompts: dict[str, Any]) -> dict[str, str]:
    """Those that the server would not run, and why."""
    found = {}
    with occupied(server):
        for name, prompt in prompts.items():
            try:
                server.client.queue(prompt)
            except PromptError as problem:
                found[name] = str(problem)
    return found


def test_the_folder_holds_each_example_with_its_picture_and_nothing_else():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("json", "jpg")}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_as_the_nodes_declare_themselves(server: ComfyServer, object_info: dict[str, Any], name: str):
    """Fails when an input was added or moved, or with the pack's version: python -m demo.graphs.examples."""
    if version(server.comfy) != VERSION:
        pytest.skip(f"the files are drawn with ComfyUI {VERSION}")
    drawn = text(workflow(examples()[name], object_info))
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == drawn


@pytest.mark.parametrize("name", NAMES)
def test_nodes_exist_and_links_fit_both_their_ends(object_info: dict[str, Any], name: str):
    skip_unless_there(name, object_info)
    content = read(name)
    nodes = {node["id"]: node for node in content["nodes"]}
    assert {node["type"] for node in nodes_of(name)} <= set(object_info)
    for number, source, slot, target, socket, kind in content["links"]:
        giver, taker = nodes[source], nodes[target]
        declared = {declared_name: type_ for declared_name, type_, _ in declared_inputs(object_info[taker["type"]])}
        entry = taker["inputs"][socket]
        assert entry["link"] == number and number in giver["outputs"][slot]["links"]
        assert declared[entry["name"]] == entry["type"] == kind
        # An input may take several types.
        assert object_info[giver["type"]]["output"][slot] == giver["outputs"][slot]["type"] in kind.split(",")
    linked = [socket["link"] for node in nodes.values() for socket in node["inputs"] if socket["link"] is not None]
    outgoing = [link for node in nodes.values() for output in node["outputs"] for link in output["links"]]
    assert sorted(linked) == sorted(outgoing) == [link[0] for link in content["links"]]


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_of_comfyuis_own_templates_as_the_note_says(object_info: dict[str, Any], name: str):
    nodes = [node for node in converted(name, object_info).values() if node["class_type"] != "CLIPVisionLoader"]
    for setting, official in {"scheduler": "simple", **OFFICIAL.get(name, {})}.items():
        wanted = official if isinstance(official, set) else {official}
        assert {node["inputs"][setting] for node in nodes if setting in node["inputs"]} == wanted, setting
    assert (name in OFFICIAL) == ("ComfyUI's own template" in described(name))


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_what_wan22s_switch_turns_on_is_the_templates_other_half(object_info: dict[str, Any], kind: str):
    usual = converted(f"wan2.2_{kind}", object_info)
    whole = converted(f"wan2.2_{kind}", object_info, whole=True)
    other = [whole[number] for number in set(whole) - set(usual)]
    assert {number: whole[number] for number in usual} == usual
    for setting, official in LORA.items():
        assert {node["inputs"][setting] for node in other if setting in node["inputs"]} == {official}, setting
    files = {node["inputs"]["lora_name"] for node in other if "lora_name" in node["inputs"]}
    version_ = {"t2v": "v1.1", "i2v": "v1"}[kind]
    both = {f"wan2.2_{kind}_lightx2v_4steps_lora_{version_}_{half}_noise.safetensors" for half in ("high", "low")}
    assert files == both
    without, with_lora = [(20, 0, 10), (20, 10, 10000)], [(4, 0, 2), (4, 2, 10000)]
    assert (steps_of(usual), steps_of(whole)) == (without, with_lora + without)
    assert steps_of(converted(f"wan2.2_{kind}_low_noise_lora", object_info)) == [with_lora[1], without[0]]


def steps_of(api: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Steps, first and last of each sampler, fewer steps first."""
    found = [node["inputs"] for node in api.values() if node["class_type"] == "KSamplerAdvanced"]
    return sorted((one["steps"], one["start_at_step"], one["end_at_step"]) for one in found)


def test_a_server_that_has_the_files_takes_them_all(stocked: ComfyServer, object_info: dict[str, Any]):
    there = [name for name in NAMES if not missing(name, object_info)]
    assert refused(stocked, {name: converted(name, object_info, whole=True) for name in there}) == {}
    assert set(NAMES) - set(there) <= {"minimax_h3_t2v", "minimax_h3_i2v"}


def test_newer_nodes_are_as_the_newer_comfyui_declares_them(server: ComfyServer, object_info: dict[str, Any]):
    if version(server.comfy) != NEWER["comfyui"]:
        pytest.skip(f"demo/graphs/newer.json is of ComfyUI {NEWER['comfyui']}")
    for type_, drawn in NEWER["nodes"].items():
        declared = object_info[type_]
        assert list(plain(declared)) == list(plain(drawn))
        assert (declared["output"], declared["output_name"]) == (drawn["output"], drawn["output_name"])


def plain(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for name, kind, options in declared_inputs(info):
        yield name, kind, {key: value for key, value in options.items() if key != "tooltip"}


def test_a_server_that_lacks_a_file_does_not(stocked: ComfyServer, object_info: dict[str, Any]):
    """Otherwise the test above could not fail."""
    api = converted("flux_dev", object_info)
    set_input(api, "Model", "unet_name", "another.safetensors")
    assert "another.safetensors" in refused(stocked, {"flux_dev": api})["flux_dev"]


def test_the_demos_own_renders(server: ComfyServer, object_info: dict[str, Any]):
    """As it is but for the number of steps: once to measure the model, then faster."""
    api = ui_to_api(read("demo_tiny_wan"), object_info)
    sampler = find_node(api, "ERTACachedSampler")["inputs"]
    sampler["steps"] = 12
    for seed in (71, 72):
        sampler["seed"] = seed
        outputs = server.client.run(api)["outputs"].values()
        (image,) = (shown["images"][0] for shown in outputs if "images" in shown)
        assert server.client.view(**image)[8:12] == b"WEBP"
    (report,) = (shown["erta"][0] for shown in outputs if "erta" in shown)
    assert report["calls"] == 12 and 6 <= report["computed"] < 12


# The demo's own nodes and model in place of those that need weights, with what they want beside their links.
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "UNETLoader": ("UNETLoader", {"unet_name": "erta_tiny_wan.safetensors"}),
    "CLIPTextEncode": ("ERTADemoPrompt", {"text": "a yellow triangle moving up on stripes"}),
    "EmptyHunyuanLatentVideo": ("ERTADemoEmptyLatent", {"batch_size": 1}),
    "VAEDecode": ("ERTADemoDecode", {"upscale": 1}),
}


def on_the_tiny_model(api: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    small = {}
    for number, node in api.items():
        if node["class_type"] not in ("CLIPLoader", "VAELoader"):
            type_, changed = STAND_INS.get(node["class_type"], (node["class_type"], {}))
            wanted = {name for name, *_ in declared_inputs(object_info[type_])}
            inputs = {name: value for name, value in {**node["inputs"], **changed}.items() if name in wanted}
            small[number] = {**node, "class_type": type_, "inputs": inputs}
    return small


def test_what_measures_a_machine_measures_it(server: ComfyServer, object_info: dict[str, Any]):
    """On the demo's tiny model: each way has a time, and its distance from the full render."""
    api = on_the_tiny_model(converted("measure_on_your_machine", object_info), object_info)
    outputs = server.client.run(api)["outputs"]
    shown = {api[number]["_meta"]["title"]: output["erta"][0] for number, output in outputs.items() if "erta" in output}
    ran = {title.partition(": ")[2]: one for title, one in shown.items() if title.startswith("Sampler: ")}
    assert all(report["seconds"] > 0 for report in ran.values())
    counts = {way: (report["calls"], report["computed"]) for way, report in ran.items()}
    assert counts == {
        "Full: every step": (30, 30),
        "ERTA at 1.5x": (30, 20),
        "ERTA at 2x": (30, 15),
        "EasyCache": (30, 30),  # it reuses inside of the model, where no report looks
        "Fewer steps": (15, 15),
    }
    closeness = {title: one["psnr"] for title, one in shown.items() if title.startswith("Full and ")}
    assert set(closeness) == {f"Full and {way}" for way in ran if way != "Full: every step"}
    assert closeness["Full and ERTA at 2x"] > closeness["Full and Fewer steps"] > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_model_file_is_named_with_its_address_and_folder(server: ComfyServer, name: str):
    words = described(name)
    for node in nodes_of(name):
        named = {value for value in node["widgets_values"] if str(value).endswith(".safetensors")}
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        assert set(models) == named - {"erta_tiny_wan.safetensors"}
        for file, model in models.items():
            assert model["directory"] == FILES[file][0]
            assert (server.base / "models" / model["directory"]).is_dir()
            address = urllib.parse.urlsplit(model["url"])
            assert (address.scheme, address.netloc) == ("https", "huggingface.co")
            assert "/resolve/main/" in address.path and address.path.endswith(f"/{file}") and "{" not in address.path
            assert f"{model['directory']}: [{file}]({model['url']})" in words
    assert (NOT_RENDERED in words) == (name != "demo_tiny_wan")
    assert ("needs ComfyUI" in words) == bool(examples()[name].needs)


@pytest.mark.parametrize("name", NAMES)
def test_every_node_says_which_pack_it_is_from(name: str):
    for node in nodes_of(name):
        companion, ours = node["type"].startswith("ERTADemo"), node["type"].startswith("ERTA")
        pack = None if companion else "ertacache" if ours else "comfy-core"
        assert node["properties"].get("cnr_id") == pack
        assert ("ver" in node["properties"]) == (pack is not None)
    assert any(node["type"] in ("ERTACachedSampler", "ERTACache") for node in nodes_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_groups_enclose_their_nodes_and_nothing_overlaps(name: str):
    content = read(name)
    frames = [(*node["pos"], *node["size"]) for node in content["nodes"]]
    shown = [(left, top - TITLE, left + width, top + height) for left, top, width, height in frames]
    groups = [
        (left, top, left + width, top + height)
        for left, top, width, height in (group["bounding"] for group in content["groups"])
    ]
    for boxes in (shown, groups):
        for number, one in enumerate(boxes):
            assert all(apart(one, other) for other in boxes[:number])
    for node in shown:
        assert sum(not apart(node, group) for group in groups) == 1
        assert any(encloses(group, node) for group in groups)


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return any(one[axis + 2] <= other[axis] or other[axis + 2] <= one[axis] for axis in (0, 1))


def encloses(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    return all(outer[axis] <= inner[axis] and inner[axis + 2] <= outer[axis + 2] for axis in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_a_small_jpeg_that_shows_something(name: str):
    content = (FOLDER / f"{name}.jpg").read_bytes()
    assert len(content) < LARGEST
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "JPEG" and picture.mode == "RGB" and picture.size == (800, 500)
        assert len(picture.resize((40, 25)).getcolors(1000)) > 100, "blank"


def test_comfyui_lists_and_serves_them_among_its_templates(server: ComfyServer):
    assert sorted(json.loads(server.client._request("/api/workflow_templates"))["ertacache"]) == sorted(NAMES)
    for name in NAMES:
        for kind in ("json", "jpg"):
            with urllib.request.urlopen(f"{server.url}/api/workflow_templates/ertacache/{name}.{kind}") as answer:
                assert answer.read() == (FOLDER / f"{name}.{kind}").read_bytes()


def test_a_misspelt_input_is_refused_when_drawing(object_info: dict[str, Any]):
    box = Box("Here", "Shift", "ModelSamplingSD3", 70, {"shfit": 3.0})
    with pytest.raises(ValueError, match=r"Shift \(ModelSamplingSD3\) has no input 'shfit'; it has model, shift"):
        draw([Column("Here", 0, 340)], [box], Words("Here", "", 100), object_info)
