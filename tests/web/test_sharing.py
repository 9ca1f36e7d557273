"""A workflow that is saved from a run renders the same, to the bit, where the profile is missing, and only the workflow
that was queued gets the plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer
from ertacache.demo.workflows import set_input, ui_to_api

SAVED_IN = {
    "SaveAnimatedWEBP": "webp",
    "SaveImage": "png",
    "SaveWEBM": "webm",
    "SaveVideo": "mp4",
    "SaveLatent": "latent",
}
KINDS = {
    "json": "application/json",
    "webp": "image/webp",
    "png": "image/png",
    "webm": "video/webm",
    "mp4": "video/mp4",
    "latent": "",
}

# The demo's graph saves WebP and latent; here all else that carries a workflow is saved as well.
SAVE_MORE = """() => {
  const decode = app.graph.nodes.find((node) => node.comfyClass === "ERTADemoDecode");
  const add = (type, from, input) => {
    const node = LiteGraph.createNode(type);
    node.pos = [1700, 200 * app.graph.nodes.length - 1200];
    app.graph.add(node);
    from.connect(0, node, input);
    return node;
  };
  add("SaveImage", decode, "images");
  add("SaveWEBM", decode, "images");
  add("SaveVideo", add("CreateVideo", decode, "images"), "video");
}"""

# ERTA Cache and a KSampler instead of ERTA Cached Sampler.
PATCH_INSTEAD = """() => {
  const ours = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
  const plain = LiteGraph.createNode("KSampler");
  const patch = LiteGraph.createNode("ERTACache");
  plain.pos = [800, 0];
  patch.pos = [800, 400];
  app.graph.add(plain);
  app.graph.add(patch);
  const values = (node) => Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]));
  const wanted = values(ours);
  for (const widget of plain.widgets) if (widget.name in wanted) widget.value = wanted[widget.name];
  ours.getInputNode(ours.findInputSlot("model")).connect(0, patch, "model");
  patch.connect(0, plain, "model");
  for (const name of ["positive", "negative", "latent_image"])
    ours.getInputNode(ours.findInputSlot(name)).connect(0, plain, name);
  for (const type of ["ERTADemoDecode", "SaveLatent"])
    plain.connect(0, app.graph.nodes.find((node) => node.comfyClass === type), "samples");
  app.graph.remove(ours);
}"""


@pytest.fixture(scope="module")
def stranger() -> Iterator[ComfyServer]:
    """Another machine: the model and the pack, cloned by git into a folder of another name, but no profile."""
    from ertacache.tests.web.conftest import greet

    with ComfyServer(folder="ComfyUI-ERTACache") as other:
        greet(other)
        yield other


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def strangers_tab(request: pytest.FixtureRequest, stranger: ComfyServer, browser: Any) -> Iterator[Any]:
    from ertacache.tests.web.conftest import Tab

    tab = Tab(browser.new_page(), stranger.url, request.param)
    yield tab
    tab.page.close()
    assert tab.complaints == []


def run_and_collect(tab: Any, server: ComfyServer, turn: str) -> tuple[dict[str, bytes], list[str]]:
    """Queue; what the save nodes wrote, and the types of the nodes that were served from the cache."""
    types = {str(node["id"]): node["type"] for node in tab.workflow()["nodes"]}
    for type_ in set(types.values()) & set(SAVED_IN):
        tab.set("filename_prefix", f"shared/{turn}", type_)
    served = [types[key] for key in tab.queue()]
    found = {}
    for key, output in tab.outputs().items():
        if types[key] in SAVED_IN:
            (entry,) = output.get("latents") or output["images"][:1]
            found[f"{turn}.{SAVED_IN[types[key]]}"] = server.client.view(**entry)
    return found, served


def latent_in(content: bytes) -> torch.Tensor:
    return safetensors.torch.load(content)["latent_tensor"]


@pytest.fixture(scope="module")
def saved(profiled: ComfyServer, browser: Any, planned: dict[str, Any]) -> dict[str, Any]:
    """Files of a first run and of a second one that the server's cache served, and the latent of both."""
    from ertacache.tests.web.conftest import Tab

    tab = Tab(browser.new_page(), profiled.url)
    tab.drop("planned.json", planned)
    tab.evaluate(SAVE_MORE)
    tab.set("seed", 4242)
    first, served = run_and_collect(tab, profiled, "first")
    assert "ERTACachedSampler" not in served
    cached, served = run_and_collect(tab, profiled, "cached")
    assert "ERTACachedSampler" in served
    found = {**first, **cached, "drawn.json": json.dumps(tab.workflow()).encode()}
    tab.page.close()
    return {**found, "reference": latent_in(first["first.latent"])}


def forget(server: ComfyServer) -> None:
    """Nothing is served from the runs before. `/free` only sets a flag, seen to when the next run has ended."""
    server.client._request("/free", {"unload_models": True, "free_memory": True})
    empty = {"class_type": "ERTADemoEmptyLatent", "inputs": {"batch_size": 2}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["empty", 0], "filename_prefix": "forget"}}
    server.client.run({"empty": empty, "save": save})


def test_a_server_that_is_to_forget_serves_nothing_from_its_cache(stranger: ComfyServer, planned: dict[str, Any]):
    graph = ui_to_api(planned, stranger.client.object_info())
    for name, value in (("steps", 4), ("speed", 1.0)):  # leaves no profile
        set_input(graph, "ERTACachedSampler", name, value)
    for _ in range(2):
        forget(stranger)
        stranger.client.run(graph)
        (kept,) = (event.data for event in stranger.client.events if event.type == "execution_cached")
        assert kept["nodes"] == []


def render_dropped(stranger: ComfyServer, tab: Any, name: str, content: bytes) -> torch.Tensor:
    """Drop the file where the profile is missing, queue, and return the latent."""
    forget(stranger)
    tab.drop(name, content, KINDS[name.split(".")[-1]])
    found, served = run_and_collect(tab, stranger, "again")
    assert not {"ERTACachedSampler", "KSampler"} & set(served)
    tab.wait_for(".erta-headline", "25 of 50 steps computed")
    tab.wait_for(".erta-notes", "Plan carried by the workflow")
    return latent_in(found["again.latent"])


# A file is read the same way in both renderers, so the second one gets only some of them.
CANVAS = ["drawn.json", *(f"first.{kind}" for kind in SAVED_IN.values()), "cached.webp", "cached.mp4"]
VUE = ["drawn.json", "first.webm", "cached.webp"]
DROPS = [(False, name) for name in CANVAS] + [(True, name) for name in VUE]


@pytest.mark.parametrize(
    ("strangers_tab", "name"),
    DROPS,
    ids=[f"{'vue' if vue else 'canvas'}-{name}" for vue, name in DROPS],
    indirect=["strangers_tab"],
)
def test_a_dropped_file_renders_the_same(stranger: ComfyServer, strangers_tab: Any, saved: dict[str, Any], name: str):
    latent = render_dropped(stranger, strangers_tab, name, saved[name])
    assert strangers_tab.value("seed") == 4242
    assert torch.equal(latent, saved["reference"])


@pytest.fixture(scope="module")
def patched(profiled: ComfyServer, browser: Any, planned: dict[str, Any]) -> dict[str, Any]:
    """The same of a model patch, whose second run has another seed: the patch is served, the sampler runs."""
    from ertacache.tests.web.conftest import Tab

    tab = Tab(browser.new_page(), profiled.url)
    tab.drop("planned.json", planned)
    tab.evaluate(PATCH_INSTEAD)
    found = {}
    for turn, seed in (("first", 77), ("second", 78)):
        tab.set("seed", seed, "KSampler")
        files, served = run_and_collect(tab, profiled, turn)
        assert "KSampler" not in served and ("ERTACache" in served) == (turn == "second")
        found[turn] = files[f"{turn}.webp"], latent_in(files[f"{turn}.latent"])
    tab.page.close()
    return found


@pytest.mark.parametrize("turn", ["first", "second"])
def test_a_file_of_a_model_patch_renders_the_same(
    stranger: ComfyServer, strangers_tab: Any, patched: dict[str, Any], turn: str
):
    content, reference = patched[turn]
    assert torch.equal(render_dropped(stranger, strangers_tab, f"{turn}.webp", content), reference)


@pytest.mark.parametrize("strangers_tab", [True], ids=["vue"], indirect=True)
def test_the_folders_name_does_not_matter(strangers_tab: Any, planned: dict[str, Any]):
    strangers_tab.drop("planned.json", planned)
    code = """() => ({
      sheets: [...document.styleSheets].map((sheet) => sheet.href ?? "").filter((href) => href.includes("ertacache")),
      display: getComputedStyle(document.querySelector(".erta-panel")).display,
    })"""
    found = strangers_tab.evaluate(code)
    assert [href.split("/extensions/")[1] for href in found["sheets"]] == ["ComfyUI-ERTACache/ertacache.css"]
    assert found["display"] == "flex", "the sheet is in force"


@pytest.mark.parametrize("strangers_tab", [True], ids=["vue"], indirect=True)
def test_a_workflow_in_which_nothing_was_set_works_as_well(
    stranger: ComfyServer, strangers_tab: Any, planned: dict[str, Any]
):
    """The last test: it leaves a profile with the stranger. The first render records it, the second is fast."""
    tab = strangers_tab
    for seed, headline in ((5, "50 of 50 steps computed"), (6, "25 of 50 steps computed")):
        tab.drop("planned.json", planned)
        tab.set("seed", seed)
        tab.queue()
        tab.wait_for(".erta-headline", headline)


BEGIN = """() => new Promise((resolve) => {
  const { api } = window.app;
  window.done = new Promise((resolve) => api.addEventListener("execution_success", resolve, { once: true }));
  api.addEventListener("ertacache.step", resolve, { once: true });
  window.tabs = [window.app.extensionManager.workflow.activeWorkflow];
  window.tabs[0].changeTracker.checkState();
  window.app.queuePrompt(0);
})"""

# An ERTA Options that asks for the built-in plan.
BUILT_IN = """(type) => {
  const options = LiteGraph.createNode("ERTAOptions");
  app.graph.add(options);
  options.widgets.find((widget) => widget.name === "without_profile").value = "built-in plan";
  options.connect(0, app.graph.nodes.find((node) => node.comfyClass === type), "options");
}"""

# What a click on another workflow's tab does.
SHOW = """async (i) => {
  app.extensionManager.workflow.activeWorkflow.changeTracker.checkState();
  await app.loadGraphData(JSON.parse(JSON.stringify(tabs[i].activeState)), true, true, tabs[i]);
}"""


@pytest.mark.parametrize("id_", ["11111111-2222-4333-8444-555555555555", "same"])
@pytest.mark.parametrize("kind", ["sampler", "patch"])
def test_a_workflow_that_was_not_queued_gets_no_plan_and_the_one_that_was_gets_it_when_it_is_shown(
    tab: Any, planned: dict[str, Any], kind: str, id_: str
):
    """All workflows of a page have the same node ids, and a duplicated one has its original's own id too."""
    type_, sampler = ("ERTACachedSampler",) * 2 if kind == "sampler" else ("ERTACache", "KSampler")
    tab.drop("planned.json", planned)
    if kind == "patch":
        tab.evaluate(PATCH_INSTEAD)
    tab.evaluate(BUILT_IN, type_)
    tab.set("seed", 600 + 2 * tab.vue + (id_ == "same"), sampler)
    other = copy.deepcopy(tab.workflow())
    other["id"] = other["id"] if id_ == "same" else id_
    tab.set("steps", 200, sampler)
    tab.evaluate(BEGIN)
    tab.evaluate("async (graph) => { await app.loadGraphData(graph, true, true, null); }", other)
    tab.evaluate("async () => { tabs.push(app.extensionManager.workflow.activeWorkflow); await done; }")
    for turn, (shown, steps) in enumerate([(1, 50), (0, 200), (1, 50)]):
        if turn:
            tab.evaluate(SHOW, shown)
        assert tab.value("steps", sampler) == steps
        if shown == 0:
            tab.wait_for(".erta-headline", "of 200 steps computed")
        assert bool(tab.value("plan", type_)) == (shown == 0)
        assert tab.page.locator(".erta-headline").count() == (shown == 0) or turn == 2
