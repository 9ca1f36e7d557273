"""ERTA Compare as an artist looks at it, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ertacache.demo.server import ComfyServer

# The candidate is what the sampler makes, the reference 1.05 times as much: an error of 0.05 / 1.05 = 4.8%.
ADD = """() => {
  const sampler = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
  const [more, compare] = ["LatentMultiply", "ERTACompare"].map((type) => LiteGraph.createNode(type));
  [more.pos, compare.pos] = [[380, 560], [720, 100]];
  app.graph.add(more);
  app.graph.add(compare);
  more.widgets[0].value = 1.05;
  sampler.connect(0, more, "samples");
  more.connect(0, compare, "reference");
  sampler.connect(0, compare, "candidate");
  Object.assign(app.canvas.ds, { scale: 1, offset: [-300, 0] });
  app.canvas.setDirty(true, true);
}"""
# Red, green and blue along the middle row.
PIXELS = """() => {
  const canvas = document.querySelector(".erta-compare canvas");
  const row = canvas.getContext("2d").getImageData(0, canvas.height / 2, canvas.width, 1).data;
  return [...row].filter((_, i) => i % 4 < 3);
}"""
SIZE = """() => app.graph.nodes.find((node) => node.comfyClass === "ERTACompare").size[0]"""
FRAME = ".erta-compare-player span"


def compared(tab: Any, planned: dict[str, Any], steps: int) -> None:
    tab.drop("planned.json", planned)
    tab.set("steps", steps)
    tab.evaluate(ADD)
    tab.queue()
    tab.page.locator(".erta-compare-stage").wait_for()


def click(tab: Any, selector: str, text: str = "") -> None:
    tab.page.locator(f".erta-compare {selector}").filter(has_text=text).first.dispatch_event("click")


def test_both_renders_play_and_are_looked_through_by_keyboard(tab: Any, planned: dict[str, Any]):
    compared(tab, planned, 50)
    tab.wait_for(".erta-compare .erta-headline", "Small differences in detail")
    numbers = tab.words(".erta-compare .erta-headline + div")
    assert re.match(r"measured 4\.8%, predicted [\d.]+%PSNR \d\d\.\d dB", numbers), numbers
    rows = tab.page.locator(".erta-compare-renders span").all_text_contents()
    assert rows[0] == "candidate" and rows[2] == "25 of 50 steps computed", "the reference has no sampler of its own"

    changes = "([selector, before]) => document.querySelector(selector).textContent !== before"
    for _ in range(2):
        tab.page.wait_for_function(changes, arg=[FRAME, tab.words(FRAME)])
    click(tab, "button", "Worst frame: ")
    worst = tab.page.get_by_role("button", name="Worst frame").text_content()
    assert tab.words(FRAME) == re.sub(r".*: (\d+), .*", r"\1 / 5", worst)
    tab.page.wait_for_timeout(700)  # more than the time of a frame
    assert tab.words(FRAME) == re.sub(r".*: (\d+), .*", r"\1 / 5", worst), "it stands still now"

    sides = tab.evaluate(PIXELS)
    click(tab, "button", "Wipe")
    divider = tab.page.locator(".erta-compare-divider")
    divider.focus()
    tab.page.keyboard.press("ArrowRight")
    assert divider.get_attribute("aria-valuenow") == "52"
    tab.page.keyboard.press("Home")
    candidate = tab.evaluate(PIXELS)
    tab.page.keyboard.press("End")
    reference = tab.evaluate(PIXELS)
    click(tab, "button", "Difference")
    difference = tab.evaluate(PIXELS)
    assert sides != candidate != reference
    assert difference == [min(8 * abs(a - b), 255) for a, b in zip(reference, candidate, strict=True)]
    assert tab.page.locator("[data-mode=difference]").first.get_attribute("aria-pressed") == "true"

    with_sound = """async () => {
      const { panelOf } = await import("/extensions/ertacache/panel.js");
      const panel = panelOf(app.graph.nodes.find((node) => node.comfyClass === "ERTACompare"));
      panel.show({ erta: [{ ...panel.output.erta[0], sound_snr: [21.5] }] });
    }"""
    tab.evaluate(with_sound)
    tab.wait_for(".erta-compare", "sound: SNR 21.5 dB")


def test_who_wants_no_motion_gets_none_and_pictures_may_be_gone(
    profiled: ComfyServer, open_tab: Callable[..., Any], planned: dict[str, Any]
):
    tab = open_tab(profiled, reduced_motion="reduce")
    compared(tab, planned, 6)
    assert tab.evaluate(SIZE) == 400
    tab.page.wait_for_timeout(700)
    assert tab.words(FRAME) == "1 / 5"
    click(tab, ".erta-compare-play")
    tab.wait_for(FRAME, "2 / 5")

    narrow = tab.workflow()
    next(node for node in narrow["nodes"] if node["type"] == "ERTACompare")["size"][0] = 300
    tab.page.route("**/view?*", lambda route: route.fulfill(status=404))
    tab.evaluate("async (graph) => app.loadGraphData(graph)", narrow)
    assert tab.evaluate(SIZE) == 300, "a node from a file keeps its width"
    tab.queue()
    tab.page.get_by_text("The pictures are gone").wait_for()
    assert not tab.page.locator(".erta-compare-stage").is_visible()
    assert [re.findall(r"status of (\d+)", complaint) for complaint in tab.complaints] == [["404"]] * len(
        tab.complaints
    )
    tab.complaints.clear()
