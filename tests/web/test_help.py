"""The help pages and the words in another language, as ComfyUI's front end shows them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ertacache.demo.server import ComfyServer

LOCALES = Path(__file__).resolve().parents[2] / "locales"

SIDE_BAR = (274, 900)  # points: ComfyUI's side bar on a small screen
SCREENS = 4  # and no page is longer than so many of them

# Older front ends load a language after the words of the packs, and over them.
KEEPS_WORDS = (1, 35)

# One new node on an empty canvas, clear of the panels to either side.
PLACE = """(type) => {
  app.graph.clear();
  app.canvas.ds.scale = 0.5;
  app.canvas.ds.offset = [1500, 800];
  const node = LiteGraph.createNode(type);
  node.pos = [0, 0];
  app.graph.add(node);
  app.canvas.setDirty(true, true);
  return node.id;
}"""

# Where its title is in the window.
TITLE = """(vue) => {
  const [node] = app.graph.nodes;
  const drawn = vue && document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
  if (drawn) return [drawn.left + drawn.width / 2, drawn.top + 10];
  const area = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  return [area.left + (node.pos[0] + 120 + offset[0]) * scale, area.top + (node.pos[1] - 15 + offset[1]) * scale];
}"""

SHOWN = """(title) => {
  const page = document.querySelector(".node-help-content");
  const heading = page?.querySelector("h1");
  const pictures = [...(page?.querySelectorAll("img") ?? [])];
  return heading?.textContent === title && pictures.length && pictures.every((one) => one.naturalWidth > 0);
}"""

# The help in a side bar of so many points: how wide its content is, and how tall.
NARROWED = """(width) => {
  const page = document.querySelector(".node-help-content");
  Object.assign(page.style, { boxSizing: "border-box", width: `${width}px`, flex: "none" });
  return [page.clientWidth, page.scrollWidth, page.scrollHeight];
}"""

WORDS = """() => {
  const [node] = app.graph.nodes;
  const label = (slot) => slot.label ?? slot.localized_name ?? slot.name;
  return [node.title, node.inputs.map(label), node.outputs.map(label), (node.widgets ?? []).map(label)];
}"""


def words(language: str) -> dict[str, Any]:
    return dict(json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")))


def place(tab: Any, node: str) -> None:
    number = tab.evaluate(PLACE, node)
    if tab.vue:
        tab.page.locator(f'[data-node-id="{number}"]').wait_for()
    tab.page.wait_for_timeout(400)  # until it has been drawn, and lies where it stays


@pytest.fixture(params=[("en", False), ("zh", True)], ids=["english-canvas", "chinese-vue"])
def reading(request: pytest.FixtureRequest, settled: ComfyServer, open_tab: Callable[..., Any]) -> tuple[Any, str]:
    """(a tab, its language): ComfyUI speaks the browser's language unless the user has chosen another."""
    language, vue = request.param
    tab = open_tab(settled, vue, locale={"en": "en-US", "zh": "zh-CN"}[language])
    assert tab.evaluate("() => app.extensionManager.setting.get('Comfy.Locale')") == language
    return tab, language


def test_the_help_of_each_node_is_shown_with_its_picture(reading: tuple[Any, str]):
    tab, language = reading
    refused: list[str] = []
    tab.page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    for node, translated in words(language).items():
        place(tab, node)
        tab.page.mouse.click(*tab.evaluate(TITLE, tab.vue))
        tab.page.get_by_test_id("info-button").click()
        tab.page.wait_for_function(SHOWN, arg=translated["display_name"])
        shown = tab.page.locator(".node-help-content").first.inner_text()
        labels = [one["name"] for part in ("inputs", "outputs") for one in translated[part].values()]
        assert [label for label in labels if label not in shown] == [], node
        width, needed, height = tab.evaluate(NARROWED, SIDE_BAR[0])
        assert width == SIDE_BAR[0] and needed <= width, f"{node}: something is cut off at the right"
        assert height <= SCREENS * SIDE_BAR[1], f"{node}: {height / SIDE_BAR[1]:.1f} screens"
    ours = [url.split("/docs/")[1] for url in refused if "/extensions/" in url]
    # The front end asks for English by its name first, and then for the page without a language.
    assert ours == ([f"{node}/en.md" for node in words("en")] if language == "en" else [])
    tab.complaints[:] = [one for one in tab.complaints if "404" not in one]


def test_nodes_are_labelled_in_the_language(reading: tuple[Any, str]):
    tab, language = reading
    version = tab.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    if language != "en" and tuple(map(int, version.split(".")[:2])) < KEEPS_WORDS:
        pytest.skip(f"front end {version} forgets the words of packs in languages other than English")
    for node, translated in words(language).items():
        tab.evaluate(PLACE, node)
        title, inputs, outputs, widgets = tab.evaluate(WORDS)
        assert title == translated["display_name"]
        assert outputs == [one["name"] for one in translated["outputs"].values()]
        labels = {one["name"] for one in translated["inputs"].values()}
        assert set(inputs) <= labels <= {*inputs, *widgets}


def test_the_server_gives_the_words_of_both_languages(settled: ComfyServer):
    with urllib.request.urlopen(f"{settled.url}/i18n") as response:
        served = json.load(response)
    for language in ("en", "zh"):
        assert served[language]["nodeDefs"].items() >= words(language).items()
        for name in ("settingsCategories", "nodeCategories", "settings"):
            file = "settings" if name == "settings" else "main"
            kept = json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))
            assert served[language][name] == (kept if name == "settings" else kept[name])


@pytest.fixture(scope="module")
def settled(server: ComfyServer) -> ComfyServer:
    """The server, to which the welcome was seen; otherwise that covers the canvas."""
    body = json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", body, headers)).close()
    return server
