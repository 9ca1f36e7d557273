"""What an artist sees and does on our nodes, in a real browser."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ertacache.demo.server import ComfyServer
from ertacache.erta.profile_file import MAX_BYTES

PROFILE = "for-the-browser"
ROOT = Path(__file__).resolve().parents[2]
GRAPHS, LOCALES = ROOT / "demo" / "graphs", ROOT / "locales"
WATCH = """() => {
  window.labels = [];
  const strip = document.querySelector(".erta-strip");
  new MutationObserver(() => window.labels.push(strip.getAttribute("aria-label")))
    .observe(strip, { attributes: true, attributeFilter: ["aria-label"] });
}"""
REPORTED = "25 of 50 steps computed"


def test_a_run_is_followed_reported_and_shown_again(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    assert tab.words(".erta-forecast") == "25 of 50 steps computed"
    tab.set("seed", 1000 + tab.vue)
    tab.evaluate(WATCH)
    tab.queue()
    tab.wait_for(".erta-headline", REPORTED)
    assert tab.strip() == "25 of 50 computed"
    labels = tab.evaluate("() => window.labels")
    assert labels[0] == "planned: 25 of 50 computed"
    assert any("of 50 done" in label for label in labels), labels
    assert tab.page.locator(".erta-cell.done").count() == 50
    assert "sigma" in tab.words(".erta-cell title")
    assert tab.page.locator(".erta-forecast").first.is_hidden(), "the report says it"
    assert "(error " in tab.words(".erta-text")

    tab.evaluate(
        "() => (window.asked = 0, window.fetch = ((plain) => (...all) => (window.asked++, plain(...all)))(fetch))"
    )
    tab.set("speed", 3.0)
    assert tab.words(".erta-forecast").startswith("Next: 17 of 50 steps computed · ")
    tab.set("steps", 20)
    assert tab.words(".erta-forecast").startswith("Next: 7 of 20 steps computed")
    assert tab.evaluate("() => window.asked") == 0, "no call to the server while a knob is turned"
    tab.set("steps", 50)
    tab.set("speed", 2.0)

    assert "5" in tab.queue(), "nothing changed, so the server's cache serves it"
    tab.wait_for(".erta-headline", REPORTED)
    assert json.loads(tab.value("plan"))["compute"].count("1") == 25

    tab.page.wait_for_timeout(1500)  # ComfyUI keeps drafts with a delay
    tab.page.reload()
    tab.wait_until_ready()
    tab.wait_for(".erta-headline", REPORTED)
    assert tab.strip() == "25 of 50 computed"


def test_nothing_of_the_panel_is_saved_or_queued(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    sampler = next(node for node in tab.workflow()["nodes"] if node["type"] == "ERTACachedSampler")
    drawn = next(node for node in planned["nodes"] if node["type"] == "ERTACachedSampler")
    assert sampler["widgets_values"] == drawn["widgets_values"]
    assert "erta_report" not in json.dumps(tab.prompt())


def test_a_profile_is_drawn_and_read_by_keyboard(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    tab.add_loader()
    tab.queue()
    tab.page.wait_for_function("document.querySelectorAll('.erta-dot-median').length > 3")
    assert tab.page.locator(".erta-curve").get_attribute("aria-label").startswith("Predicted error by speed: 1.25× ")
    assert "Difference between model calls" in tab.page.locator(".erta-map").get_attribute("aria-label")
    assert tab.words(".erta-choice").startswith("2×: 25 of 50 computed")
    slider = tab.page.locator(".erta-profile input")
    slider.focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.words(".erta-choice").startswith("2.5×: 20 of 50 computed")
    assert slider.get_attribute("aria-valuetext") == tab.words(".erta-choice")
    tab.evaluate("() => document.querySelector('.erta-choice').textContent = ''")
    tab.queue()
    tab.wait_for(".erta-choice", "of 50 computed")
    tab.page.wait_for_timeout(1500)
    tab.page.reload()
    tab.wait_until_ready()
    tab.page.wait_for_function("document.querySelectorAll('.erta-dot-median').length > 3")


def test_what_erta_profile_measures_is_drawn_and_drawn_again(tab: Any, profiled: ComfyServer):
    tab.drop("profile.json", json.loads((GRAPHS / "profile.json").read_text(encoding="utf-8")))
    for name, value in (("runs", 1), ("seed", 300 + tab.vue), ("name", f"drawn-{tab.vue}")):
        tab.set(name, value, "ERTAProfile")
    drawn = "document.querySelectorAll('.erta-dot-median').length > 3"
    tab.queue()
    tab.page.wait_for_function(drawn)
    assert "Runs recorded: 1" in tab.page.locator(".erta-text .erta-notes li").all_text_contents()
    tab.page.wait_for_timeout(1500)  # ComfyUI keeps drafts with a delay
    tab.page.reload()
    tab.wait_until_ready()
    tab.page.wait_for_function(drawn)
    (profiled.base / "user" / "default" / "ertacache" / f"drawn-{tab.vue}.safetensors").unlink()


def toast(tab: Any, words: str) -> Any:
    return tab.page.get_by_text(words).and_(tab.page.locator("[role=alert] *"))


def test_a_toast_comes_when_somebody_is_needed_and_not_when_switched_off(tab: Any, planned: dict[str, Any]):
    shown = toast(tab, "The workflow's plan is not used")
    tab.drop("planned.json", planned)
    tab.set("plan", "no plan")
    tab.set("seed", 400 + tab.vue)
    tab.queue()
    shown.first.wait_for()
    tab.evaluate("() => app.extensionManager.setting.set('ERTACache.Toasts', false)")
    shown.first.wait_for(state="hidden")
    tab.set("plan", "no plan either")
    tab.queue()
    tab.wait_for(".erta-warning", "plan is not used")
    tab.page.wait_for_timeout(1000)
    assert shown.count() == 0
    tab.evaluate("() => app.extensionManager.setting.set('ERTACache.Toasts', true)")


# As when the page was loaded again while the run went on.
REPORTED_LATE = """([type, content]) => {
  const node = app.graph.nodes.find((node) => node.comfyClass === type).id;
  const detail = { node, prompt: "before", workflow: (app.rootGraph ?? app.graph).id, report: content };
  app.api.dispatchEvent(new CustomEvent("ertacache.report", { detail }));
}"""
TIMES = {"seconds": 1.0, "seconds_computed": 0.8, "seconds_reused": 0.2, "cache_bytes": 4096, "speed_up": 1.5}
REPORT = {"calls": 4, "computed": 2, "reused": 2, "compute": "1010", "sigmas": [], "text": "", **TIMES}
POINT = {"speed": 2.0, "computed": 2, "of": 4, "median": 0.01, "worst": 0.02, "compute": "1010"}
SHOWN = {"name": "x", "measured": {}, "sigmas": [], "map": [], "curve": [POINT]}


def note(level: str, code: str, text: str, **values: str) -> dict[str, Any]:
    return {"level": level, "code": code, "text": text, "values": values}


def test_the_level_of_a_note_decides_and_not_its_words(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    tab.add_loader()
    for type_, content in (("ERTACachedSampler", {**REPORT, "complete": False}), ("ERTALoadProfile", SHOWN)):
        calm, alarming = f"All is well with {type_}", f"{type_}: nothing recorded, does not fit, is not used"
        executed = {**content, "notes": [note("info", "", alarming), note("warning", "", calm)]}
        tab.evaluate(REPORTED_LATE, [type_, executed])
        toast(tab, calm).first.wait_for()
        tab.evaluate(REPORTED_LATE, [type_, executed])  # once more, as from ComfyUI's cache
        tab.page.wait_for_timeout(500)
        assert toast(tab, calm).count() == 1
        assert toast(tab, alarming).count() == 0
        both = tab.page.locator(".erta-notes li").filter(has_text=type_)
        assert both.all_text_contents() == [calm, alarming], "what needs somebody comes first"
        assert both.and_(tab.page.locator(".erta-warning")).all_text_contents() == [calm]
        marked, plain = both.evaluate_all("(lines) => lines.map((line) => getComputedStyle(line).color)")
        assert plain != marked


@pytest.fixture
def chinese(profiled: ComfyServer, open_tab: Callable[..., Any], planned: dict[str, Any]) -> Any:
    """ComfyUI speaks the browser's language unless the user has chosen another."""
    tab = open_tab(profiled, locale="zh-CN")
    if tab.evaluate("() => app.extensionManager.setting.get('Comfy.Locale')") != "zh":
        pytest.skip("this front end does not take the browser's language")
    tab.drop("planned.json", planned)
    return tab


def test_notes_and_panel_are_shown_in_the_language(chinese: Any):
    words = json.loads((LOCALES / "zh" / "main.json").read_text(encoding="utf-8"))["ertacache"]
    refused = words["notes"]["carried_refused"].partition("{")[0]
    chinese.set("plan", "no plan")
    chinese.set("seed", 500)
    chinese.queue()
    chinese.wait_for(".erta-warning", refused)
    assert toast(chinese, refused).count() == 1
    headline = words["panel"]["{computed} of {all} steps computed"]
    assert headline.format(all=50, computed=25) in chinese.words(".erta-headline")
    unknown = note("info", "of_another_version", "in English {x}", x="1")
    known = note("info", "profile_found", "English", name="{x} $& <b>")
    chinese.evaluate(REPORTED_LATE, ["ERTACachedSampler", {**REPORT, "notes": [unknown, known]}])
    chinese.wait_for(".erta-notes", "In English {x}")
    chinese.wait_for(".erta-notes", words["notes"]["profile_found"].format(name="{x} $& <b>"))


@pytest.mark.parametrize("answer", [None, "", "null", "{}", '{"zh": {"ertacache": {"notes": {}}}}'])
def test_without_translations_everything_is_in_english(chinese: Any, answer: str | None):
    """None: no response at all."""
    route = (lambda request: request.abort()) if answer is None else (lambda request: request.fulfill(body=answer))
    chinese.page.route("**/i18n", route)
    chinese.page.reload()
    chinese.wait_until_ready()
    chinese.page.locator(".erta-panel").first.wait_for(state="attached")
    known = note("warning", "profile_found", "profile of a name", name="a name")
    chinese.evaluate(REPORTED_LATE, ["ERTACachedSampler", {**REPORT, "notes": [known]}])
    chinese.wait_for(".erta-warning", "Profile of a name")
    assert toast(chinese, "Profile of a name").count() == 1
    assert chinese.words(".erta-headline") == "1.5× faster: 2 of 4 steps computed"


def test_undo_copy_and_collapse_keep_the_panel(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    tab.queue()
    tab.wait_for(".erta-headline", REPORTED)
    tab.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    tab.set("speed", 4.0)
    tab.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    tab.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    assert tab.value("speed") == 2.0
    tab.wait_for(".erta-headline", REPORTED)
    copied = """() => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
      app.canvas.deselectAll();
      app.canvas.select(node);
      app.canvas.copyToClipboard();
      app.canvas.pasteFromClipboard();
      node.collapse();
      node.collapse();
      return app.graph.nodes.filter((node) => node.comfyClass === "ERTACachedSampler").length;
    }"""
    assert tab.evaluate(copied) == 2
    tab.page.wait_for_function("document.querySelectorAll('.erta-panel').length === 2")
    assert tab.page.locator(".erta-headline").count() == 1, "the copy has not run yet"


def test_inside_a_subgraph(profiled: ComfyServer, open_tab: Callable[..., Any], planned: dict[str, Any]):
    tab = open_tab(profiled)
    tab.drop("planned.json", planned)
    tab.set("seed", 77)
    tab.evaluate("""() => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
      app.graph.convertToSubgraph(new Set([node]));
    }""")
    tab.queue()
    report = """() => [...app.graph.subgraphs.values()][0].nodes.find((node) => node.comfyClass === "ERTACachedSampler")
      .widgets.find((widget) => widget.name === "erta_report").value"""
    assert REPORTED in tab.evaluate(report)
    # Bypassed it hands its latent through, and nothing inside it is sampled.
    tab.evaluate("() => { app.graph.nodes.find((node) => node.subgraph).mode = 4; }")
    tab.queue()
    assert not [output for output in tab.outputs().values() if "erta" in output]


def test_another_tab_is_left_alone(profiled: ComfyServer, open_tab: Callable[..., Any], planned: dict[str, Any]):
    one, other = open_tab(profiled), open_tab(profiled)
    for tab in (one, other):
        tab.drop("planned.json", planned)
    one.set("seed", 31)
    one.queue()
    one.wait_for(".erta-headline", REPORTED)
    assert other.page.locator(".erta-headline").count() == 0


def test_a_page_that_is_opened_later_shows_the_report_of_what_comes_from_the_cache(
    profiled: ComfyServer, open_tab: Callable[..., Any], planned: dict[str, Any]
):
    """Also where the history holds a prompt with NaN, which Python writes and browsers do not read."""
    text = {"class_type": "PreviewAny", "inputs": {"source": float("nan")}}
    profiled.client.run({"text": text})
    for seed in (32, 33, 33):
        tab = open_tab(profiled)
        tab.drop("planned.json", planned)
        tab.set("seed", seed)
        served = tab.queue()
        tab.wait_for(".erta-headline", REPORTED)
        assert json.loads(tab.value("plan"))["compute"].count("1") == 25
    assert "5" in served


LOADED = {"class_type": "Loader", "inputs": {"name": "a"}}
ASKED = {"m": LOADED, "s": {"class_type": "Sampler", "inputs": {"model": ["m", 0], "seed": 1, "size": [2, 3]}}}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"s": {"class_type": "Sampler", "inputs": {"size": [2, 3], "seed": 1, "model": ["m", 0]}}}, True),
        ({"s": {"class_type": "Sampler", "inputs": {**ASKED["s"]["inputs"], "model": ["n", 0]}}, "n": LOADED}, True),
        ({"m": {"class_type": "Loader", "inputs": {"name": "b"}}}, False),
        ({"m": {"class_type": "Other", "inputs": {"name": "a"}}}, False),
        ({"s": {"class_type": "Sampler", "inputs": {**ASKED["s"]["inputs"], "seed": 2}}}, False),
        ({"s": {"class_type": "Sampler", "inputs": {**ASKED["s"]["inputs"], "size": [3, 2]}}}, False),
        ({"s": {"class_type": "Sampler", "inputs": {**ASKED["s"]["inputs"], "model": ["m", 1]}}}, False),
        ({"s": {"class_type": "Sampler", "inputs": {**ASKED["s"]["inputs"], "more": 1}}}, False),
        ({"s": {"class_type": "Sampler", "inputs": {"seed": 1, "size": [2, 3]}}}, False),
    ],
)
def test_a_report_is_only_shown_again_of_what_was_the_same(ready: Any, changes: dict[str, Any], same: bool):
    code = "async ([one, other]) => (await import('/extensions/ertacache/again.js')).isSame(one, other, 's')"
    assert ready.evaluate(code, [ASKED, {**ASKED, **changes}]) == same


@pytest.mark.parametrize(
    "value", [{}, [1.5, -2e9, None, True], {"NaN": 'said "NaN", -Infinity\\'}, ['\\"', float("nan")], [-float("inf")]]
)
def test_what_python_writes_is_read(ready: Any, value: Any):
    code = "async (text) => (await import('/extensions/ertacache/again.js')).parsed(text)"
    plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
    assert ready.evaluate(code, json.dumps(value)) == plain


def header(metadata: dict[str, str]) -> bytes:
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text


def test_profiles_are_exported_imported_renamed_and_deleted(
    tab: Any, planned: dict[str, Any], profiled: ComfyServer, tmp_path: Path
):
    folder = profiled.base / "user" / "default" / "ertacache"
    tab.drop("planned.json", planned)
    tab.add_loader()
    page = tab.page
    content = """() => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "ERTALoadProfile");
      return app.collectNodeMenuItems(node).map((item) => item?.content ?? "");
    }"""
    assert "ERTA profile: Export" in tab.evaluate(content)
    with page.expect_download() as download:
        press(tab, "Export")
    exported = tmp_path / f"imported-{tab.vue}.safetensors"
    download.value.save_as(exported)
    assert exported.read_bytes() == (folder / f"{PROFILE}.safetensors").read_bytes()

    pick(tab, {"name": "wrong.safetensors", "mimeType": "", "buffer": header({"format": "pt"})})
    page.get_by_text("choose a profile file, this is another kind of safetensors").first.wait_for()
    assert not (folder / "wrong.safetensors").exists()
    pick(tab, {"name": "large.safetensors", "mimeType": "", "buffer": bytes(MAX_BYTES + 1)})
    page.get_by_text("large.safetensors is larger than a profile can be (8 MB).").first.wait_for()
    pick(tab, str(exported))
    ready = page.get_by_text(f"Profile imported-{tab.vue} is ready.")
    ready.first.wait_for()
    assert tab.value("name", "ERTALoadProfile") == f"imported-{tab.vue}"
    assert (folder / exported.name).read_bytes() == exported.read_bytes()
    (folder / exported.name).write_bytes(b"another")
    pick(tab, str(exported))
    page.get_by_role("dialog").get_by_role("button", name="Overwrite").click()
    ready.nth(1).wait_for()
    assert (folder / exported.name).read_bytes() == exported.read_bytes()

    press(tab, "Rename…")
    box = page.get_by_role("dialog").locator("input")
    box.fill("a name/with folders")
    box.press("Enter")
    page.get_by_text("profile name 'a name/with folders': use 1 to 64").first.wait_for()
    press(tab, "Rename…")
    box.fill(f"renamed-{tab.vue}")
    box.press("Enter")
    page.get_by_text(f"is called renamed-{tab.vue} now").first.wait_for()
    assert (folder / f"renamed-{tab.vue}.safetensors").exists() and not (folder / exported.name).exists()

    press(tab, "Delete…")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text(f"Profile renamed-{tab.vue} is gone.").first.wait_for()
    assert not (folder / f"renamed-{tab.vue}.safetensors").exists()
    assert tab.value("name", "ERTALoadProfile") == PROFILE
    # A browser notes every refusal: a wrong file, a name that is taken, a name that is none.
    assert [re.findall(r"status of (\d+)", complaint) for complaint in tab.complaints] == [["400"], ["409"], ["400"]]
    tab.complaints.clear()


def press(tab: Any, name: str) -> None:
    tab.page.locator(".erta-tools button").filter(has_text=name).first.dispatch_event("click")


def pick(tab: Any, file: Any) -> None:
    with tab.page.expect_file_chooser() as chooser:
        press(tab, "Import…")
    chooser.value.set_files(file)


@pytest.mark.parametrize(
    ("knob", "count", "expected"),
    [
        ({"speed": 1}, "Every step is computed", None),
        ({"speed": 2, "calls": 25}, "12 of 25 steps computed", None),
        ({"speed": 10, "calls": 6}, "2 of 6 steps computed", None),
        ({"speed": 2, "calls": 5}, "Every step is computed: too few to skip any", None),
        ({"speed": 2}, "50% of the steps computed", None),
        ({"speed": 2, "fixed": True}, "The preset or threshold decides which steps are computed", None),
        (
            {"speed": 3, "calls": 12, "curve": True},
            "4 of 12 steps computed",
            "no visible difference expected (error 2%, at worst 4%)",
        ),
        ({"speed": 8, "calls": 16, "curve": True}, "2 of 16 steps computed", "small differences in detail (above 4%)"),
        (
            {"speed": 1.1, "calls": 100, "curve": True},
            "91 of 100 steps computed",
            "no visible difference expected (below 1%)",
        ),
    ],
)
def test_the_forecast_in_words(ready: Any, knob: dict[str, Any], count: str, expected: str | None):
    """On a curve of 1% where 5 of 12 are computed and 4% where 3 of 12 are: halfway lie 2%."""
    points = [(5, 0.01, 0.02), (3, 0.04, 0.08)]
    curve = [{"speed": 12 / c, "computed": c, "of": 12, "median": m, "worst": w} for c, m, w in points]
    told = forecast(ready, {**knob, "curve": curve if knob.get("curve") else []})
    assert (told["count"], told.get("expected")) == (count, expected)


def forecast(page: Any, knob: dict[str, Any]) -> dict[str, Any]:
    code = "async (knob) => (await import('/extensions/ertacache/forecast.js')).forecast(knob)"
    return dict(page.evaluate(code, knob))


def test_a_speed_that_changes_the_picture_is_said_before_the_render_with_one_that_does_not(ready: Any):
    points = [(1.5, 8, 0.04), (2.0, 6, 0.09), (4.0, 3, 0.4)]
    curve = [{"speed": s, "computed": c, "of": 12, "median": m, "worst": m} for s, c, m in points]
    lost = [{**point, "median": 0.5} for point in curve]

    def told(speed: float, known: list[dict[str, float]]) -> tuple[str, bool]:
        found = forecast(ready, {"speed": speed, "calls": 12, "curve": known})
        return found["expected"], found["warning"]

    kept = "; speed 2 keeps the picture (9%)"
    assert told(4, curve) == ("motion and layout may change (error 40%, at worst 40%)" + kept, True)
    assert told(6, curve) == ("motion and layout may change (above 40%)" + kept, True)
    assert told(2, curve) == ("small differences in detail (error 9%, at worst 9%)", False)
    assert told(2, lost) == ("motion and layout may change (error 50%, at worst 9%); at every speed", True)


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        (
            {"compute": "1" * 20, "recording": True, "left": 20},
            "Measuring this model: every step is computed this once",
        ),
        ({"compute": "10" * 10, "left": 10}, "10 of 20 steps computed"),
        ({"compute": "10" * 20, "left": 20}, "20 of 40 model calls computed"),
        (
            {"compute": "1" * 20, "recording": True, "run": 1, "runs": 4, "left": 90},
            "Measuring: run 1 of 4, then one at 2x",
        ),
        ({"compute": "1" * 20, "recording": True, "run": 2, "runs": 4, "left": 60}, "Measuring: run 2 of 4"),
        ({"compute": "10" * 10, "run": 1, "runs": 4, "left": 70}, "Run 1 once more at 2x, to see how errors grow"),
    ],
)
def test_what_a_run_is_doing_and_the_time_that_is_left(ready: Any, begun: dict[str, Any], words: str):
    """At a second for each computed call."""
    code = """async (begun) => {
      const { Progress } = await import('/extensions/ertacache/progress.js');
      const progress = new Progress(begun, 20);
      const before = progress.words();
      progress.since = performance.now() - 2000;
      progress.step({ kinds: "101", left: 30 });
      return [before, progress.words()];
    }"""
    assert ready.evaluate(code, begun) == [words, f"{words} · about 30 s left"]


@pytest.mark.parametrize("error", [0.0, 0.0299, 0.03, 0.1, 0.1499, 0.15, 1.0])
def test_the_page_and_the_pack_mean_the_same_by_an_error(ready: Any, error: float):
    from ertacache.erta.meaning import meaning

    code = "async (error) => (await import('/extensions/ertacache/quality.js')).meaning(error)"
    assert ready.evaluate(code, error) == meaning(error)


MEASURED = """async (types) => {
  app.graph.clear();
  const nodes = types.map((type, i) => {
    const node = LiteGraph.createNode(type);
    node.pos = [40 + 420 * (i % 3), 60 + 560 * Math.floor(i / 3)];
    app.graph.add(node);
    return node;
  });
  app.canvas.ds.scale = 0.5;
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 1500));
  return nodes.map((node) => {
    const frame = document.querySelector(`[data-node-id="${node.id}"]`);
    return frame ? frame.getBoundingClientRect().height / app.canvas.ds.scale : node.size[1];
  });
}"""


def test_a_fresh_node_is_little_taller_than_ksampler_and_shows_no_plan(tab: Any):
    plain, ours, _ = tab.evaluate(MEASURED, ["KSampler", "ERTACachedSampler", "ERTACache"])
    assert plain < ours <= plain + 110
    shown = """() => app.graph.nodes.map((node) => node.widgets.filter((one) => one.name !== "erta_report")
      .filter((one) => !one.hidden && !one.options.hidden).map((one) => one.name))"""
    ksampler, sampler, cache = tab.evaluate(shown)
    assert sampler == [*ksampler, "speed"] and cache == ["speed"]
    assert tab.page.get_by_text("plan", exact=True).count() == 0


def test_a_run_adds_no_step_of_undo_and_a_collapsed_node_tells_how_it_went(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    tab.set("seed", 800 + tab.vue)
    steps = """() => {
      const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
      (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
      return tracker.undoQueue.length;
    }"""
    # ComfyUI's own preview makes a step in Nodes 2.0.
    tab.evaluate("() => app.graph.remove(app.graph.nodes.find((node) => node.comfyClass === 'SaveAnimatedWEBP'))")
    before = tab.evaluate(steps)
    tab.queue()
    tab.wait_for(".erta-headline", REPORTED)
    tab.page.wait_for_timeout(700)  # Nodes 2.0 measures what has grown
    assert tab.value("plan") and tab.evaluate(steps) == before
    told = """() => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler");
      const words = () => node.badges.map((badge) => (badge instanceof Function ? badge() : badge).text);
      const open = words().filter((text) => /×|⚠/.test(text));
      node.collapse();
      return [open, words().filter((text) => /×|⚠/.test(text))];
    }"""
    opened, collapsed = tab.evaluate(told)
    assert opened == [] and len(collapsed) == 1
    if tab.vue:
        shown = """(text) => [...document.querySelectorAll(".lg-node")]
          .some((frame) => getComputedStyle(frame, "::after").content.includes(text))"""
        tab.page.wait_for_function(shown, arg=collapsed[0])


def test_a_cancelled_and_a_refused_run_leave_no_old_number_standing(tab: Any, planned: dict[str, Any]):
    tab.drop("planned.json", planned)
    tab.set("seed", 820 + tab.vue)
    tab.queue()
    tab.wait_for(".erta-headline", REPORTED)
    tab.set("seed", 830 + tab.vue)
    tab.set("steps", 300)
    tab.evaluate("() => void app.queuePrompt(0)")
    tab.wait_for(".erta-status", "left")
    assert tab.page.locator(".erta-headline").count() == 0
    tab.evaluate("() => app.api.interrupt()")
    tab.wait_for(".erta-text", "Cancelled.")
    assert tab.strip() == "planned: 0 of 0 computed" and tab.page.locator(".erta-headline").count() == 0
    refused = """() => {
      const node = app.graph.nodes.find((node) => node.comfyClass === "ERTACachedSampler").id;
      const detail = { node, prompt: "before", workflow: (app.rootGraph ?? app.graph).id, words: "It does not fit." };
      app.api.dispatchEvent(new CustomEvent("ertacache.refused", { detail }));
    }"""
    tab.evaluate(refused)
    tab.wait_for(".erta-text.erta-warning", "It does not fit.")


@pytest.fixture(scope="module")
def ready(browser: Any, profiled: ComfyServer) -> Any:
    """A page with the modules loaded, for what needs no workflow."""
    page = browser.new_page()
    page.goto(profiled.url)
    page.wait_for_function("window.app?.vueAppReady")
    yield page
    page.close()
