"""A real browser on a real server. One browser and one server serve the whole session; each test has its own tab."""

from __future__ import annotations

import base64
import copy
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ertacache.demo.browser import launch, what_is_missing
from ertacache.demo.server import ComfyServer
from ertacache.demo.workflows import ui_to_api

GRAPHS = Path(__file__).resolve().parents[2] / "demo" / "graphs"
PATIENCE = 90_000  # milliseconds: the machine may be busy with other things
PROFILE = "for-the-browser"

DROP = """([name, type, bytes]) => {
  const transfer = new DataTransfer();
  const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([content], name, { type }));
  const target = document.elementFromPoint(400, 400);
  for (const kind of ["dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, {
      bubbles: true, cancelable: true, clientX: 400, clientY: 400, dataTransfer: transfer,
    }));
}"""

QUEUE = """() => new Promise((resolve, reject) => {
  window.heard = { cached: [] };
  const { api } = window.app;
  const failed = ({ detail }) => reject(new Error(detail.exception_message));
  api.addEventListener("execution_cached", ({ detail }) => window.heard.cached.push(...detail.nodes), { once: true });
  api.addEventListener("execution_error", failed, { once: true });
  api.addEventListener("execution_success", ({ detail }) => {
    api.removeEventListener("execution_error", failed);
    window.heard.prompt = detail.prompt_id;
    resolve(window.heard.cached);
  }, { once: true });
  window.app.queuePrompt(0);
})"""


class Tab:
    """One tab of the browser with ComfyUI in it, and what an artist does there."""

    def __init__(self, page: Any, url: str, vue: bool = False):
        self.page, self.url, self.vue = page, url, vue
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.route("**/releases**", lambda route: route.abort())
        page.on("console", self._hear)
        page.on("pageerror", lambda problem: self.complaints.append(str(problem)))
        page.goto(url)
        self.wait_until_ready()
        self.evaluate("(vue) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)

    def _hear(self, message: Any) -> None:
        ours = "ertacache" in message.text.lower() or "ertacache" in message.location.get("url", "")
        # ComfyUI asks its registry about a node that is shown, and is kept from going there.
        looked_up = "api.comfy.org" in message.text
        if ours and not looked_up and message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def wait_until_ready(self) -> None:
        self.page.wait_for_function(
            "window.app?.extensionManager && window.app.canvas?.graph && window.app.vueAppReady"
        )

    def evaluate(self, code: str, argument: Any = None) -> Any:
        return self.page.evaluate(code, argument)

    def drop(self, name: str, content: bytes | dict[str, Any], kind: str = "application/json") -> None:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        self.evaluate("() => app.graph.clear()")
        self.evaluate(DROP, [name, kind, base64.b64encode(data).decode()])
        self.page.wait_for_function("app.graph.nodes.length > 4")
        self.page.locator(".erta-panel").first.wait_for(state="attached")

    def queue(self) -> list[str]:
        """Run the workflow as it stands; the ids of the nodes that were served from the server's cache."""
        return list(self.evaluate(QUEUE))

    def outputs(self) -> dict[str, Any]:
        """Of this tab's last run."""
        prompt = self.evaluate("() => window.heard.prompt")
        with urllib.request.urlopen(f"{self.url}/history/{prompt}") as response:
            return dict(json.load(response)[prompt]["outputs"])

    def set(self, name: str, value: Any, type_: str = "ERTACachedSampler") -> None:
        """Turn a widget as both renderers do: value, then callback."""
        code = """([type, name, value]) => {
          const node = app.graph.nodes.find((node) => node.comfyClass === type);
          const widget = node.widgets.find((widget) => widget.name === name);
          widget.value = value;
          widget.callback?.(value, app.canvas, node);
        }"""
        self.evaluate(code, [type_, name, value])

    def value(self, name: str, type_: str = "ERTACachedSampler") -> Any:
        code = """([type, name]) => app.graph.nodes.find((node) => node.comfyClass === type)
          .widgets.find((widget) => widget.name === name).value"""
        return self.evaluate(code, [type_, name])

    def workflow(self) -> dict[str, Any]:
        return dict(self.evaluate("async () => (await app.graphToPrompt()).workflow"))

    def prompt(self) -> dict[str, Any]:
        return dict(self.evaluate("async () => (await app.graphToPrompt()).output"))

    def words(self, selector: str) -> str:
        return str(self.page.locator(selector).first.text_content())

    def strip(self) -> str:
        return str(self.page.locator(".erta-strip").first.get_attribute("aria-label"))

    def wait_for(self, selector: str, text: str) -> None:
        shown = """([selector, text]) =>
          [...document.querySelectorAll(selector)].some((one) => one.textContent.includes(text))"""
        self.page.wait_for_function(shown, arg=[selector, text])

    def add_loader(self, name: str = PROFILE) -> None:
        """A node that loads the profile, connected to the sampler."""
        code = """(name) => {
          const loader = LiteGraph.createNode("ERTALoadProfile");
          loader.pos = [380, 520];
          app.graph.add(loader);
          loader.widgets.find((widget) => widget.name === "name").value = name;
          const sampler = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
          loader.connect(0, sampler, "profile");
        }"""
        self.evaluate(code, name)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = what_is_missing()
    if reason and "CI" in os.environ:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = launch(playwright)
        yield launched
        launched.close()


def greet(server: ComfyServer) -> None:
    """Mark the front end's welcome as seen; otherwise it covers the canvas."""
    body = json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", body, headers)).close()


@pytest.fixture(scope="session")
def planned() -> dict[str, Any]:
    """The demo's workflow of a sampler with the knob, in ComfyUI's UI format."""
    return dict(json.loads((GRAPHS / "planned.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def profiled(server: ComfyServer, planned: dict[str, Any]) -> ComfyServer:
    """The server, with a profile of the tiny model in its store."""
    greet(server)
    graph = ui_to_api(planned, server.client.object_info())
    sampler = next(node for node in graph.values() if node["class_type"] == "ERTACachedSampler")
    taken = ("model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image")
    inputs = {name: copy.copy(sampler["inputs"][name]) for name in taken}
    profile = {"class_type": "ERTAProfile", "inputs": {**inputs, "denoise": 1.0, "runs": 1, "name": PROFILE}}
    kept = {key: node for key, node in graph.items() if node["class_type"] in ("UNETLoader", "ERTADemoPrompt")}
    empty = {key: node for key, node in graph.items() if node["class_type"] == "ERTADemoEmptyLatent"}
    server.client.run({**kept, **empty, "profile": profile})
    return server


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs; at the end none of them may have complained about us."""
    tabs: list[Tab] = []

    def open_one(server: ComfyServer, vue: bool = False, **more: Any) -> Tab:
        page = browser.new_context(viewport={"width": 1600, "height": 1000}, accept_downloads=True, **more).new_page()
        tabs.append(Tab(page, server.url, vue))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.page.context.close()
    assert [complaint for tab in tabs for complaint in tab.complaints] == []


@pytest.fixture(params=[False, True], ids=["canvas", "vue"])
def tab(request: pytest.FixtureRequest, profiled: ComfyServer, open_tab: Callable[..., Tab]) -> Tab:
    """A tab on the server with the profile, in each of the two renderers."""
    return open_tab(profiled, request.param)
