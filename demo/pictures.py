"""Pictures of the nodes for README and the help pages: a real browser at a real server, with the demo's tiny Wan.

    python -m demo.pictures                 all of them, in about two minutes
    python -m demo.pictures compare custom  only these scenes

They go to docs/pictures/ and web/docs/images/. It needs what the tests in a browser need: a Chromium, and Playwright
from requirements-dev.txt. Look at every picture before you keep it: nothing may be cut off or lie over something else.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from .browser import launch
from .server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = ROOT / "demo" / "graphs"
HELP, README = ROOT / "web" / "docs" / "images", ROOT / "docs" / "pictures"

PROFILE = "tiny-wan"  # the name that graphs/profile.json gives
VIEW = {"width": 2400, "height": 1500}
WHILE_RUNNING = {"width": 640, "height": 480}  # drawing a large window takes time from the sampler
CORNER = (320, 170)  # of a picture in the window: below the menu, right of the side bar
SHARPNESS = 2  # pixels of the picture to one of the page
COLOURS = 192
WIDTH, MARGIN = 380, 14  # of a node; around what is shown

# What would cover the canvas, or show a machine without weights.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Canvas.SelectionToolbox": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}

READY = "window.app?.extensionManager && window.app.canvas?.graph && window.app.vueAppReady"

QUEUE = """() => new Promise((resolve, reject) => {
  const { api } = window.app;
  api.addEventListener("execution_error", ({ detail }) => reject(new Error(detail.exception_message)), { once: true });
  api.addEventListener("execution_success", () => resolve(true), { once: true });
  window.app.queuePrompt(0);
})"""

# A node by script. links: {input: [type or title of the other node, its output]}.
ADD = """([type, pos, width, values, links, title]) => {
  const find = (name) => app.graph.nodes.find((node) => node.type === name || node.title === name);
  const node = LiteGraph.createNode(type);
  if (title) node.title = title;
  node.pos = pos;
  app.graph.add(node);
  for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
  for (const [name, [source, slot]] of Object.entries(links)) find(source).connect(slot, node, name);
  node.setSize([width, node.computeSize()[1]]);
}"""

# Each group as large as the nodes in it need, or none of them.
GROUPS = """(keep) => {
  app.canvas.draw(true, true); // sizes settle when they are drawn
  for (const group of [...app.graph.groups]) {
    group.recomputeInsideNodes();
    if (keep) group.resizeTo(group.nodes, 12);
    else app.graph.remove(group);
  }
}"""

# Brings nodes, or with no names everything, to the corner of the window and gives the size of what is around them.
PLACE = """([names, [left, top], scale]) => {
  const all = [...app.graph.groups, ...app.graph.nodes];
  const shown = names.length ? app.graph.nodes.filter((node) => names.includes(node.type)) : all;
  const around = shown.map((one) => Array.from(one.boundingRect ?? one.boundingBox));
  const [x, y] = [0, 1].map((axis) => Math.min(...around.map((box) => box[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...around.map((box) => box[axis] + box[axis + 2])));
  const canvas = app.canvas.canvas.getBoundingClientRect();
  app.canvas.deselectAll();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(left - canvas.left) / scale - x, (top - canvas.top) / scale - y];
  app.canvas.setDirty(true, true);
  return [(right - x) * scale, (bottom - y) * scale];
}"""


class Desk:
    """One tab of the browser with ComfyUI in it."""

    def __init__(self, browser: Browser, url: str, *, vue: bool = False, palette: str = "dark"):
        self.page: Page = browser.new_context(viewport=VIEW, device_scale_factor=SHARPNESS).new_page()
        self.page.set_default_timeout(180_000)
        self.page.route("**/releases**", lambda route: route.abort())
        settle(url, {**SETTINGS, "Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
        self.page.goto(url)
        self.page.wait_for_function(READY)

    def load(self, name: str, change: Callable[[dict[str, Any]], None] = lambda graph: None) -> None:
        """One of the demo's workflow files, as if it was dropped."""
        graph = json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
        change(graph)
        self.page.evaluate("async (graph) => app.loadGraphData(graph)", graph)
        self.page.wait_for_timeout(1000)

    def add(
        self,
        kind: str,
        place: Sequence[int],
        values: dict[str, Any],
        links: dict[str, Any],
        width: int = WIDTH,
        title: str = "",
    ) -> None:
        self.page.evaluate(ADD, [kind, list(place), width, values, links, title])

    def queue(self) -> None:
        self.page.set_viewport_size(WHILE_RUNNING)
        self.page.evaluate(QUEUE)
        self.page.set_viewport_size(VIEW)
        self.page.wait_for_timeout(1000)

    def fit(self, kind: str, width: int = WIDTH, more: int = 0) -> None:
        """Pull the node to its least height, or so much more."""
        code = """([type, width, more]) => {
          const node = app.graph.nodes.find((node) => node.type === type);
          // Twice: the first may change how the text in it breaks.
          for (let i = 0; i < 2; i++) node.setSize([width, node.computeSize()[1] + more]);
        }"""
        self.page.evaluate(code, [kind, width, more])

    def take(self, path: Path, names: Sequence[str] = (), scale: float = 1.0) -> None:
        """A picture of the nodes of these types; of everything, groups too, where none is named."""
        self.page.evaluate(GROUPS, not names)
        width, height = self.page.evaluate(PLACE, [list(names), CORNER, scale])
        self.page.mouse.move(5, VIEW["height"] - 5)
        self.page.wait_for_timeout(800)
        left, top = CORNER
        box = {"x": left - MARGIN, "y": top - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
        assert left + width < VIEW["width"] and top + height < VIEW["height"], f"{path.name}: larger than the window"
        save(self.page.screenshot(clip=box), path)

    def close(self) -> None:
        self.page.context.close()


def settle(url: str, settings: dict[str, Any]) -> None:
    body, headers = json.dumps(settings).encode(), {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/settings", body, headers)).close()


def save(png: bytes, path: Path) -> None:
    """As a PNG of few colours, a fifth of the size and to the eye the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {picture.width}x{picture.height}, {path.stat().st_size / 1000:.0f} kB")


def profile(browser: Browser, url: str) -> None:
    desk = Desk(browser, url)
    desk.load("profile")
    desk.queue()
    desk.fit("ERTAProfile")
    desk.take(HELP / "ERTAProfile.png", ["ERTAProfile"])
    desk.close()


def sampler(browser: Browser, url: str) -> None:
    """Also the whole workflow, and the node that loads what ERTA Profile has kept."""
    desk = Desk(browser, url)
    desk.load("planned")
    desk.queue()
    desk.fit("ERTACachedSampler", 340)
    desk.take(README / "workflow.png", scale=0.8)
    desk.fit("ERTACachedSampler")
    desk.take(HELP / "ERTACachedSampler.png", ["ERTACachedSampler"])
    desk.add("ERTAOptions", (400, 900), {}, {})
    desk.take(HELP / "ERTAOptions.png", ["ERTAOptions"])
    desk.add("ERTALoadProfile", (0, 900), {"name": PROFILE}, {})
    desk.queue()
    desk.fit("ERTALoadProfile")
    desk.take(HELP / "ERTALoadProfile.png", ["ERTALoadProfile"])
    desk.close()


def compare(browser: Browser, url: str) -> None:
    """The cached render against a full one of the same seed."""
    desk = Desk(browser, url)
    desk.load("planned")
    same = {"seed": 1, "steps": 50, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "speed": 1.0}
    links = {"model": ["UNETLoader", 0], "positive": ["Prompt", 0], "latent_image": ["ERTADemoEmptyLatent", 0]}
    links["negative"] = ["Negative (empty)", 0]
    desk.add("ERTACachedSampler", (800, 1000), same, links, title="Full render")
    desk.add("ERTADemoDecode", (1220, 1000), {"upscale": 4}, {"samples": ["Full render", 0]}, title="Decode full")
    images = {"reference": ["Decode full", 0], "candidate": ["Decode", 0]}
    desk.add("ERTACompare", (1620, 0), {}, images)
    desk.queue()
    desk.fit("ERTACompare", 400)
    desk.take(HELP / "ERTACompare.png", ["ERTACompare"])
    desk.close()


def custom(browser: Browser, url: str) -> None:
    """ERTA Cache and the Timestep Adjuster before a SamplerCustom."""
    desk = Desk(browser, url)
    desk.load("planned", without_sampler)
    desk.add("ERTALoadProfile", (0, 420), {"name": PROFILE}, {})
    model = {"model": ["ERTACache", 0]}
    desk.add("ERTACache", (800, 0), {}, {"model": ["UNETLoader", 0], "profile": ["ERTALoadProfile", 0]})
    desk.add("BasicScheduler", (1240, 0), {"scheduler": "simple", "steps": 50}, {"model": ["UNETLoader", 0]}, 300)
    desk.add("KSamplerSelect", (1240, 190), {"sampler_name": "euler"}, {}, 300)
    desk.add("ERTATimestepAdjuster", (1600, 0), {}, {**model, "sigmas": ["BasicScheduler", 0]}, 260)
    conditions = {"positive": ["Prompt", 0], "negative": ["Negative (empty)", 0]}
    rest = {"sampler": ["KSamplerSelect", 0], "latent_image": ["ERTADemoEmptyLatent", 0]}
    inputs = {**model, **conditions, "sigmas": ["ERTATimestepAdjuster", 0], **rest}
    values = {"noise_seed": 1, "control_after_generate": "fixed", "cfg": 5.0}
    desk.add("SamplerCustom", (1600, 150), values, inputs, 260)
    desk.add("SaveLatent", (2600, 0), {}, {"samples": ["SamplerCustom", 0]})
    desk.queue()
    desk.fit("ERTACache")
    desk.take(HELP / "ERTACache.png", ["ERTACache"])
    wired = ("ERTACache", "BasicScheduler", "KSamplerSelect", "ERTATimestepAdjuster", "SamplerCustom")
    desk.take(HELP / "ERTATimestepAdjuster.png", wired, 0.9)
    desk.close()


def without_sampler(graph: dict[str, Any]) -> None:
    """Leave model, prompts and size of the workflow."""
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] <= 4]
    for node in graph["nodes"]:
        for output in node["outputs"]:
            output["links"] = []
    graph["links"] = []


def light(browser: Browser, url: str) -> None:
    """The sampler in Nodes 2.0, which is HTML, on ComfyUI's light palette."""
    desk = Desk(browser, url, vue=True, palette="light")
    desk.load("planned")
    desk.queue()
    desk.fit("ERTACachedSampler")
    desk.take(README / "nodes2_light.png", ["ERTACachedSampler"])
    desk.close()


SCENES = {scene.__name__: scene for scene in (profile, sampler, compare, custom, light)}


def main(wanted: Sequence[str]) -> None:
    with ComfyServer() as server, sync_playwright() as playwright:
        browser = launch(playwright)
        for name in SCENES:
            if name == "profile" or name in wanted or not wanted:  # all the others show its profile
                SCENES[name](browser, server.url)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], help="those to take; all by default")
    main(parser.parse_args().scenes)
