"""Takes the pictures of example_workflows/ in a real browser: python -m demo.graphs.thumbnails [NAME ...]

Run it after `python -m demo.graphs.examples`. It needs demo/requirements-dev.txt and a Chromium. The demo's own
workflow is rendered twice before its picture is taken, so that it shows a clip, a plan and a report.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

from ..browser import launch
from ..server import ComfyServer
from .examples import FOLDER, PICTURE, examples, stand_ins

WIDTH, HEIGHT = 800, 500
DRAWN_AT = 3  # times that size, so that the letters are drawn at all; ComfyUI leaves them out where they get small
QUALITY = 80
SEEN_BEFORE = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
PLAIN = {"Comfy.UseNewMenu": "Disabled", "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}

READY = "window.app?.extensionManager && window.app.canvas?.graph && window.app.vueAppReady"
FIT = """([width, height]) => {
  const corners = app.graph.groups.map(({ pos, size }) => [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]]);
  const [left, top] = [0, 1].map((side) => Math.min(...corners.map((corner) => corner[side])));
  const [right, bottom] = [2, 3].map((side) => Math.max(...corners.map((corner) => corner[side])));
  const scale = 0.97 * Math.min(width / (right - left), height / (bottom - top));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(width / scale - left - right) / 2, (height / scale - top - bottom) / 2];
  app.canvas.setDirty(true, true);
}"""
RENDER = """() => new Promise((resolve, reject) => {
  const { api } = window.app;
  api.addEventListener("execution_success", () => resolve(), { once: true });
  api.addEventListener("execution_error", ({ detail }) => reject(new Error(detail.exception_message)), { once: true });
  app.queuePrompt(0);
})"""


def picture(page: Page, workflow: dict[str, Any], renders: int = 0) -> bytes:
    """A JPEG of the whole workflow as the browser shows it."""
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    for _ in range(renders):
        page.evaluate(RENDER)
    page.evaluate(FIT, [DRAWN_AT * WIDTH, DRAWN_AT * HEIGHT])
    page.wait_for_timeout(1500)  # pictures load, panels are laid out
    with Image.open(io.BytesIO(page.screenshot())) as shown:
        small = shown.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=QUALITY, optimize=True)
    return content.getvalue()


def draw_evening(path: Path) -> None:
    """A first frame of our own: a low sun over hills."""
    scene = Image.linear_gradient("L").resize((768, 768))
    scene = Image.merge("RGB", [scene.point(lambda shade, top=top: top + shade // 3) for top in (40, 60, 140)])
    pen = ImageDraw.Draw(scene)
    pen.ellipse((470, 330, 610, 470), fill=(255, 214, 120))
    pen.ellipse((-200, 470, 600, 1100), fill=(38, 66, 72))
    pen.ellipse((250, 560, 1100, 1300), fill=(24, 44, 52))
    scene.save(path)


def settle(server: ComfyServer) -> None:
    """No welcome, no menus: nothing but the canvas."""
    body = json.dumps({**SEEN_BEFORE, **PLAIN}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", body, headers)).close()


def main(arguments: Sequence[str] | None = None) -> None:
    known = examples()
    parser = argparse.ArgumentParser(description="Takes the pictures of example_workflows/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}; all by default")
    names = parser.parse_args(arguments).names or list(known)
    with ComfyServer() as server, stand_ins(server.base, server.comfy), sync_playwright() as playwright:
        settle(server)
        draw_evening(server.base / "input" / PICTURE)
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": DRAWN_AT * WIDTH, "height": DRAWN_AT * HEIGHT})
        page.route("**/releases**", lambda route: route.abort())
        page.goto(server.url)
        page.wait_for_function(READY)
        page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        for name in names:
            workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
            path = FOLDER / f"{name}.jpg"
            path.write_bytes(picture(page, workflow, renders=2 if known[name].rendered else 0))
            print(f"wrote {path}")
        browser.close()


if __name__ == "__main__":
    main()
