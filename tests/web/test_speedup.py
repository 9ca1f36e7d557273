"""One click: samplers are sped up, and back, in ComfyUI's real front end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ertacache.demo.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
SPEED_UP, BACK, REMOVE = "Speed up with ERTACache", "Back to KSampler", "Remove ERTA Cache"

# Nodes by title, values by widget, and links "from -> to.input"; what is named under `inside` goes into one subgraph.
BUILD = """async ({ nodes, links, values = {}, modes = {}, inside = [], twice = false }) => {
  await app.loadGraphData({ nodes: [], links: [], groups: [], version: 0.4, last_node_id: 0, last_link_id: 0 });
  const made = {};
  for (const [title, type] of Object.entries(nodes)) {
    const node = LiteGraph.createNode(type);
    Object.assign(node, { title, pos: [350 * Object.keys(made).length, 0] });
    app.graph.add(node);
    made[title] = node;
  }
  for (const [place, value] of Object.entries(values)) {
    const [title, name] = place.split(".");
    made[title].widgets.find((widget) => widget.name === name).value = value;
  }
  for (const link of links) {
    const [from, to] = link.split(" -> ");
    const [title, name] = to.split(".");
    made[from].connect(0, made[title], made[title].inputs.findIndex((input) => input.name === name));
  }
  for (const [title, mode] of Object.entries(modes)) if (made[title]) made[title].mode = mode;
  if (!inside.length) return;
  const { node } = app.graph.convertToSubgraph(new Set(inside.map((title) => made[title])));
  Object.assign(node, { title: "host" });
  if (modes.host) node.mode = modes.host;
  if (!twice) return;
  const other = LiteGraph.createNode(node.type);
  app.graph.add(other);
  Object.assign(other, { title: "other host" });
  for (const [i, input] of node.inputs.entries()) {
    const link = input.link != null && app.graph.getLink(input.link);
    if (link) app.graph.getNodeById(link.origin_id).connect(link.origin_slot, other, i);
  }
}"""
PROMPT = "async () => (await app.graphToPrompt()).output"
# The tracker's method has a newer name.
HISTORY = """() => {
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
  return tracker.undoQueue.length;
}"""
UNDO = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
ALL = """() => [app.graph, ...app.graph.subgraphs.values()].flatMap((graph) => graph.nodes)"""
PRESS = """async ([title, words]) => {
  const nodes = [app.graph, ...app.graph.subgraphs.values()].flatMap((graph) => graph.nodes);
  const node = nodes.find((node) => node.title === title);
  app.collectNodeMenuItems(node).find((item) => item?.content === words).callback();
}"""
OFFERED = """(title) => {
  const node = app.graph.nodes.find((node) => node.title === title);
  return app.collectNodeMenuItems(node).map((item) => item?.content).filter((words) => /ERTA|KSampler/.test(words));
}"""

PLAIN = {"model": "UNETLoader", "text": "ERTADemoPrompt", "latent": "ERTADemoEmptyLatent", "sampler": "KSampler"}
PLAIN_LINKS = [
    "model -> sampler.model",
    "text -> sampler.positive",
    "text -> sampler.negative",
    "latent -> sampler.latent_image",
]
CUSTOM = {"model": "UNETLoader", "guider": "BasicGuider", "sampler": "SamplerCustomAdvanced"}
CUSTOM_LINKS = ["model -> guider.model", "guider -> sampler.guider"]
STAGES = {"model": "UNETLoader", "high": "KSamplerAdvanced", "low": "KSamplerAdvanced"}


def load(tab: Any, workflow: dict[str, Any]) -> None:
    tab.evaluate("async (data) => { await app.loadGraphData(data); }", workflow)


def speed_up(tab: Any, title: str = "") -> dict[str, Any]:
    """By the node's menu, or the whole workflow by its command; until it is done. What the module says about it."""
    code = """async (title) => {
      const menu = await import("/extensions/ertacache/speedup_menu.js");
      const node = title && app.graph.nodes.find((node) => node.title === title);
      return menu.speedUpWorkflow(node ? { graph: null, node: node.id } : undefined);
    }"""
    return dict(tab.evaluate(code, title))


def back(tab: Any) -> list[str]:
    code = "async () => (await import('/extensions/ertacache/speedup_menu.js')).backFromIt()"
    return list(tab.evaluate(code)["changed"])


def wiring(tab: Any) -> dict[str, list[str]]:
    """By title and input of what is linked in the prompt: the titles of where it comes from, in order."""
    prompt = tab.evaluate(PROMPT)
    found: dict[str, list[str]] = {}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and name in ("model", "guider"):
                found.setdefault(f"{node['_meta']['title']}.{name}", []).append(prompt[value[0]]["_meta"]["title"])
    return found


def types(tab: Any) -> list[str]:
    return sorted(tab.evaluate(f"({ALL})().map((node) => node.type)"))


PATCH = "ERTA Cache (Model Patch)"


@pytest.fixture(scope="module")
def page(profiled: ComfyServer, browser: Any) -> Any:
    """One tab in the classic renderer for what only changes the workflow."""
    from ertacache.tests.web.conftest import Tab

    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Tab(context.new_page(), profiled.url)
    context.close()


@pytest.fixture
def full() -> dict[str, Any]:
    return dict(json.loads((ROOT / "demo" / "graphs" / "full.json").read_text(encoding="utf-8")))


def described(tab: Any) -> dict[str, Any]:
    """What is saved, without the counters of ids and the view."""
    saved = tab.workflow()
    del saved["last_node_id"], saved["last_link_id"]
    saved.get("extra", {}).pop("ds", None)
    for node in saved["nodes"]:  # Nodes 2.0 lays out again, with other last digits
        node["pos"], node["size"] = [round(x, 1) for x in node["pos"]], [round(x, 1) for x in node["size"]]
        if node["type"] == "SaveAnimatedWEBP":
            del node["size"]  # it grows with the preview of a run
    return saved


def press(tab: Any, title: str, words: str, then: str) -> None:
    """An item of a node's menu, until there is a node of a type."""
    tab.evaluate(PRESS, [title, words])
    tab.page.wait_for_function("(type) => app.graph.nodes.some((node) => node.type === type)", arg=then)
    tab.page.wait_for_function("!app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState")


def test_ksampler_becomes_ours_with_all_that_it_had_runs_and_goes_back(tab: Any, full: dict[str, Any]):
    sampler = next(node for node in full["nodes"] if node["type"] == "KSampler")
    values = [700 + tab.vue, "increment", 50, 5.0, "euler", "simple", 1.0]
    sampler.update(title="Mine", color="#322", bgcolor="#533", size=[400, 350], widgets_values=values)
    full["groups"] = [{"id": 1, "title": "Group", "bounding": [700, -100, 600, 600], "color": "#3f789e", "flags": {}}]
    full["extra"] = {
        "reroutes": [{"id": 1, "pos": [600, 300], "linkIds": [4]}, {"id": 2, "pos": [1200, 10], "linkIds": [5]}],
        "linkExtensions": [{"id": 4, "parentId": 1}, {"id": 5, "parentId": 2}],
    }
    load(tab, full)
    tab.page.wait_for_timeout(1500)  # Nodes 2.0 lays out what it has loaded
    before, steps, prompt = described(tab), tab.evaluate(HISTORY), tab.prompt()
    press(tab, "Mine", SPEED_UP, "ERTACachedSampler")
    tab.page.wait_for_timeout(1500)
    assert tab.evaluate(HISTORY) == steps + 1, "one step of undo"
    saved = described(tab)
    ours = next(node for node in saved["nodes"] if node["type"] == "ERTACachedSampler")
    was = next(node for node in before["nodes"] if node["type"] == "KSampler")
    for name in ("id", "title", "pos", "color", "bgcolor", "mode", "flags"):
        assert ours[name] == was[name], name
    assert ours["widgets_values"][:7] == values
    assert [{**node, "links": None} for node in saved["extra"]["reroutes"]] == [
        {**node, "links": None} for node in before["extra"]["reroutes"]
    ]
    assert saved["groups"] == before["groups"] and saved["extra"]["linkExtensions"] == before["extra"]["linkExtensions"]
    now = tab.prompt()
    assert {name: now["5"]["inputs"][name] for name in prompt["5"]["inputs"]} == prompt["5"]["inputs"]
    assert now["5"]["inputs"]["speed"] == 2 and now["5"]["class_type"] == "ERTACachedSampler"
    assert {**now, "5": 0} == {**prompt, "5": 0}, "nothing else has changed"
    tab.evaluate(UNDO)
    assert tab.prompt() == prompt
    tab.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.redo()")
    assert tab.prompt() == now
    tab.queue()
    tab.wait_for(".erta-headline", "25 of 50")
    assert tab.value("seed") == values[0] + 1, "increment is still what follows a run"
    tab.set("seed", values[0])
    press(tab, "Mine", BACK, "KSampler")
    assert described(tab) == before
    # ComfyUI writes the preview that the run has left into the node that saves it.
    assert {**tab.prompt(), "7": 0} == {**prompt, "7": 0}


@pytest.mark.parametrize("inside", [(), ("guider",), ("sampler",), ("guider", "sampler"), ("model", "guider")])
def test_a_sampler_with_a_guider_gets_the_patch_before_its_guider(page: Any, inside: tuple[str, ...]):
    """Also where a subgraph's border lies between them."""
    page.evaluate(BUILD, {"nodes": CUSTOM, "links": CUSTOM_LINKS, "inside": inside})
    before = page.prompt()
    assert speed_up(page) == {"changed": ["sampler"], "left": []}
    assert wiring(page) == {"sampler.guider": ["guider"], "guider.model": [PATCH], f"{PATCH}.model": ["model"]}
    assert speed_up(page) == {"changed": [], "left": []}, "not twice"
    assert back(page) == [PATCH]
    assert page.prompt() == before


def test_two_stages_get_a_patch_each_and_two_samplers_of_one_guider_one(page: Any):
    page.evaluate(BUILD, {"nodes": STAGES, "links": ["model -> high.model", "model -> low.model"]})
    before = page.prompt()
    assert speed_up(page)["changed"] == ["high", "low"]
    assert wiring(page) == {"high.model": [PATCH], "low.model": [PATCH], f"{PATCH}.model": ["model", "model"]}
    back(page)
    assert page.prompt() == before

    experts = {**STAGES, "other": "UNETLoader"}
    page.evaluate(BUILD, {"nodes": experts, "links": ["model -> high.model", "other -> low.model"]})
    assert speed_up(page)["changed"] == ["high", "low"]
    assert wiring(page)[f"{PATCH}.model"] == ["model", "other"]

    shared = {**CUSTOM, "again": "SamplerCustomAdvanced"}
    page.evaluate(BUILD, {"nodes": shared, "links": [*CUSTOM_LINKS, "guider -> again.guider"]})
    assert speed_up(page)["changed"] == ["sampler", "again"]
    assert types(page).count("ERTACache") == 1


def test_of_a_guider_with_two_models_only_the_first_is_patched(page: Any):
    if not page.evaluate("() => 'DualModelGuider' in LiteGraph.registered_node_types"):
        pytest.skip("this ComfyUI has no DualModelGuider")
    nodes = {**CUSTOM, "guider": "DualModelGuider", "other": "UNETLoader"}
    page.evaluate(BUILD, {"nodes": nodes, "links": [*CUSTOM_LINKS, "other -> guider.model_negative"]})
    assert speed_up(page)["changed"] == ["sampler"]
    assert wiring(page)["guider.model"] == [PATCH]
    assert types(page).count("ERTACache") == 1


def test_a_subgraph_that_is_shown_twice_is_changed_once_and_keeps_what_each_shows(page: Any):
    """The seed is promoted and another one at each place."""
    nodes = {**PLAIN, "number": "PrimitiveInt"}
    links = [*PLAIN_LINKS, "number -> sampler.seed"]
    page.evaluate(BUILD, {"nodes": nodes, "links": links, "inside": ["sampler"], "twice": True})
    page.evaluate("""() => {
      for (const [title, seed] of [["host", 11], ["other host", 22]]) {
        const host = app.graph.nodes.find((node) => node.title === title);
        host.disconnectInput(host.inputs.findIndex((input) => input.name === "seed"));
        host.widgets.find((widget) => widget.name === "seed").value = seed;
      }
    }""")

    def seeds() -> list[int]:
        return sorted(n["inputs"]["seed"] for n in page.prompt().values() if "seed" in n["inputs"])

    before = page.prompt()
    assert seeds() == [11, 22]
    assert speed_up(page)["changed"] == ["sampler"]
    assert types(page).count("ERTACachedSampler") == 1 and "KSampler" not in types(page)
    assert seeds() == [11, 22]
    back(page)
    assert page.prompt() == before


SCHEDULED = {**CUSTOM, "kind": "KSamplerSelect", "steps": "BasicScheduler"}
SCHEDULED_LINKS = [*CUSTOM_LINKS, "kind -> sampler.sampler", "steps -> sampler.sigmas"]
NUMBERED = {"nodes": {**PLAIN, "number": "PrimitiveInt"}, "links": [*PLAIN_LINKS, "number -> sampler.steps"]}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"values": {"sampler.steps": 10}}, None),
        ({"values": {"sampler.steps": 9}}, "steps"),
        ({"values": {"sampler.steps": 20, "sampler.denoise": 0.3}}, None),
        ({"values": {"sampler.sampler_name": "euler_cfg_pp"}}, "sampler"),
        ({"modes": {"sampler": 2}}, "inactive"),
        ({"modes": {"sampler": 4}}, "inactive"),
        ({"modes": {"host": 4}, "inside": ["sampler"]}, "inactive"),
        ({"values": {"number.value": 4}, **NUMBERED}, "steps"),
        ({"values": {"number.value": 20}, **NUMBERED}, None),
        ({"values": {"number.value": 4}, "inside": ["sampler"], **NUMBERED}, "steps"),
        ({"links": PLAIN_LINKS[1:]}, "model"),
        ({"nodes": SCHEDULED, "links": SCHEDULED_LINKS, "values": {"steps.steps": 4}}, "steps"),
        ({"nodes": SCHEDULED, "links": SCHEDULED_LINKS, "values": {"steps.steps": 20}}, None),
        ({"nodes": SCHEDULED, "links": SCHEDULED_LINKS, "values": {"kind.sampler_name": "euler_cfg_pp"}}, "sampler"),
    ],
)
def test_what_gains_nothing_is_left_alone_and_said(page: Any, change: dict[str, Any], left: str | None):
    page.evaluate(BUILD, {"nodes": PLAIN, "links": PLAIN_LINKS, **change})
    before = page.prompt()
    expected = {"changed": [], "left": [left]} if left else {"changed": ["sampler"], "left": []}
    assert speed_up(page) == expected
    if left:
        assert page.prompt() == before


def test_who_asks_for_one_sampler_by_name_knows_its_steps(page: Any):
    page.evaluate(BUILD, {"nodes": PLAIN, "links": PLAIN_LINKS, "values": {"sampler.steps": 4}})
    assert speed_up(page, "sampler")["changed"] == ["sampler"]


EASY = {"nodes": {**PLAIN, "easy": "EasyCache"}, "links": ["model -> easy.model", "easy -> sampler.model"]}


def test_another_cache_is_offered_to_be_removed(page: Any):
    page.evaluate(BUILD, EASY)
    before = page.prompt()
    answer = "(yes) => { app.extensionManager.dialog.confirm = async (asked) => (window.asked = asked, yes); }"
    page.evaluate(answer, False)
    assert speed_up(page) == {"changed": [], "left": ["cache"]}
    assert "Remove easy?" in page.evaluate("() => window.asked.message")
    assert page.prompt() == before
    page.evaluate(answer, True)
    assert speed_up(page) == {"changed": ["sampler"], "left": []}
    assert wiring(page) == {"sampler.model": ["model"]}
    assert "EasyCache" not in types(page)
    page.evaluate(BUILD, {**EASY, "modes": {"easy": 4}})
    assert speed_up(page) == {"changed": ["sampler"], "left": []}, "a bypassed one is in nobody's way"


def test_a_patch_with_several_behind_it_and_reroutes_on_both_sides_is_removed(page: Any):
    """The last link of each keeps its reroutes, with those before the patch in front of them."""
    nodes = {**STAGES, "patch": "ERTACache", "profile": "ERTALoadProfile"}
    links = ["model -> patch.model", "profile -> patch.profile", "patch -> high.model", "patch -> low.model"]
    page.evaluate(BUILD, {"nodes": nodes, "links": links})
    page.evaluate("""() => {
      const by = (title) => app.graph.nodes.find((node) => node.title === title);
      const link = (title) => app.graph.getLink(by(title).inputs[0].link);
      app.graph.createReroute([500, 400], link("patch"));
      app.graph.createReroute([900, 400], link("low"));
    }""")
    page.evaluate(PRESS, ["patch", REMOVE])
    page.page.wait_for_function("!app.graph.nodes.some((node) => node.type === 'ERTACache')")
    assert wiring(page) == {"high.model": ["model"], "low.model": ["model"]}
    saved = page.workflow()
    reroutes = {one["id"]: one for one in saved["extra"]["reroutes"]}
    first, second = sorted(reroutes)
    assert reroutes[second]["parentId"] == first and sorted(len(one["linkIds"]) for one in reroutes.values()) == [1, 2]
    assert sorted(one["parentId"] for one in saved["extra"]["linkExtensions"]) == [first, second]


def test_menus_offer_what_fits(page: Any):
    nodes = {**PLAIN, "ours": "ERTACachedSampler", "patch": "ERTACache", "profile": "ERTAProfile", **STAGES, **CUSTOM}
    page.evaluate(BUILD, {"nodes": {**nodes, "sampler": "KSampler", "last": "SamplerCustomAdvanced"}, "links": []})
    offered = {title: page.evaluate(OFFERED, title) for title in ("sampler", "high", "last", "ours", "patch")}
    assert offered == {
        "sampler": [SPEED_UP],
        "high": [SPEED_UP],
        "last": [SPEED_UP],
        "ours": [BACK],
        "patch": [REMOVE],
    }
    for other in ("model", "text", "guider", "profile"):
        assert page.evaluate(OFFERED, other) == []
    items = "() => app.collectCanvasMenuItems(app.canvas).map((item) => item?.content)"
    both = ["Speed up this workflow with ERTACache", "Back to the workflow without ERTACache"]
    assert [item for item in page.evaluate(items) if item in both] == both
    labels = """() => app.extensionManager.command.commands.filter(({ id }) => id.startsWith("ERTACache."))
      .map(({ label }) => (typeof label === "function" ? label() : label))"""
    assert page.evaluate(labels)[:2] == both


def test_in_nodes_2_a_selected_sampler_has_a_button(profiled: ComfyServer, open_tab: Callable[..., Any]):
    tab = open_tab(profiled, vue=True)
    tab.evaluate(BUILD, {"nodes": PLAIN, "links": PLAIN_LINKS})
    tab.evaluate("""() => {
      const [x, y] = app.graph.nodes.find((node) => node.title === "sampler").pos;
      Object.assign(app.canvas.ds, { scale: 0.7, offset: [600 - x, 500 - y] });
      app.canvas.setDirty(true, true);
    }""")
    tab.page.wait_for_timeout(1000)
    node = tab.page.locator("[data-node-id]").filter(has_text="sampler_name").first
    node.click(position={"x": 60, "y": 10})
    tab.page.locator("button:has(.pi-bolt)").first.click()
    tab.page.wait_for_function("app.graph.nodes.some((node) => node.type === 'ERTACachedSampler')")
    tab.page.wait_for_timeout(1500)
    node.click(position={"x": 60, "y": 10})
    tab.page.locator("button:has(.pi-undo)").first.click()
    tab.page.wait_for_function("app.graph.nodes.some((node) => node.type === 'KSampler')")


def test_the_command_works_inside_a_subgraph_and_tells_what_it_did(tab: Any):
    """The subgraph stays open."""
    nodes = {**PLAIN, "few": "KSampler"}
    links = [*PLAIN_LINKS, "model -> few.model"]
    tab.evaluate(BUILD, {"nodes": nodes, "links": links, "values": {"few.steps": 4}, "inside": ["sampler", "few"]})
    tab.evaluate("""() => {
      const host = app.graph.nodes.find((node) => node.title === "host");
      app.canvas.openSubgraph(host.subgraph, host);
    }""")
    tab.page.wait_for_function("app.canvas.graph !== (app.rootGraph ?? app.graph)")
    tab.evaluate("() => app.extensionManager.command.execute('ERTACache.SpeedUp')")
    told = "Sped up: sampler. Left alone: few (only 4 steps: little to gain)."
    tab.page.get_by_text(told).first.wait_for()
    shown = "() => app.canvas.graph.nodes.map((node) => node.type).sort()"
    assert tab.evaluate(shown) == ["ERTACachedSampler", "KSampler"]
    tab.page.locator(".erta-panel").first.wait_for(state="attached")
    tab.evaluate("() => app.extensionManager.command.execute('ERTACache.Back')")
    tab.page.get_by_text("Without ERTACache again: sampler.").first.wait_for()
    assert tab.evaluate(shown) == ["KSampler", "KSampler"]


def test_the_words_are_in_the_language(profiled: ComfyServer, open_tab: Callable[..., Any]):
    tab = open_tab(profiled, locale="zh-CN")
    if tab.evaluate("() => app.extensionManager.setting.get('Comfy.Locale')") != "zh":
        pytest.skip("this front end does not take the browser's language")
    words = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["ertacache"]["panel"]
    tab.evaluate(BUILD, {"nodes": PLAIN, "links": PLAIN_LINKS, "modes": {"sampler": 2}})
    assert tab.evaluate(OFFERED, "sampler") == [words[SPEED_UP]]
    speed_up(tab)
    told = words["Left alone: {names}."].format(names=f"sampler ({words['muted or bypassed']})")
    tab.page.get_by_text(told).first.wait_for()
