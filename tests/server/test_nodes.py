"""The nodes in a real server, on a tiny Wan with random weights: what an artist does, and what a stranger may try."""

from __future__ import annotations

import copy
import json
import urllib.request
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer, Event, PromptError, WorkflowError, WorkflowInterrupted
from ertacache.demo.workflows import give_options

STEPS = 12
SETTINGS = {"steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
OPTIONS = {"mode", "without_profile", "level", "predictor", "check", "protect_start", "threshold", "preset", "offload"}
HOSTILE = [
    "../x",
    "..",
    "/tmp/erta-outside",
    "C:\\x",
    "\\\\host\\share",
    "a\0b",
    "CON",
    "nul.txt",
    "x" * 300,
    "",
    ".hidden",
    "%2e%2e%2fx",
    "․․/x",  # noqa: RUF001 - U+2024, a look-alike of the dot
    "рrofile",  # noqa: RUF001 - a Cyrillic first letter
    "name\n",
]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


class Bench:
    """One server and one model of its own, whose profiles therefore fit nobody else's."""

    def __init__(self, server: ComfyServer, model: str):
        self.server, self.model = server, model

    def graph(self, **nodes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The nodes with a model, two prompts and an empty latent beside them, and ERTA Options where asked for."""
        graph = {
            "model": node("UNETLoader", unet_name=self.model, weight_dtype="default"),
            "yes": node("ERTADemoPrompt", text="a red circle moving right on a dark background"),
            "no": node("ERTADemoPrompt", text=""),
            "empty": node("ERTADemoEmptyLatent", batch_size=1),
            **copy.deepcopy(nodes),
        }
        for name, one in nodes.items():
            chosen = OPTIONS & one["inputs"].keys() if one["class_type"].startswith("ERTA") else ()
            if chosen:
                give_options(graph, name, **{option: graph[name]["inputs"].pop(option) for option in chosen})
        return graph

    def run(self, extra: dict[str, Any] | None = None, hear: Any = None, **nodes: dict[str, Any]) -> dict[str, Any]:
        outputs: dict[str, Any] = self.server.client.run(self.graph(**nodes), extra, hear)["outputs"]
        return outputs

    def latent(self, outputs: dict[str, Any], at: str = "save") -> torch.Tensor:
        return safetensors.torch.load(self.server.client.view(**outputs[at]["latents"][0]))["latent_tensor"]

    def workflow(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """The UI workflow in the file that was saved."""
        (entry,) = outputs["save"]["latents"]
        with safetensors.safe_open(self.server.base / "output" / entry["filename"], "pt") as file:
            return json.loads(file.metadata()["workflow"])

    def heard(self, event: str) -> list[Any]:
        return [one.data for one in self.server.client.events if one.type == event]

    @property
    def store(self) -> Path:
        return self.server.base / "user" / "default" / "ertacache"

    def files(self) -> set[Path]:
        """All that lies in the server's folders; the packs in custom_nodes are links, which are not followed."""
        return set(self.server.base.rglob("*"))


@pytest.fixture(scope="module")
def make_bench(server: ComfyServer, comfy: ModuleType) -> Callable[[], Bench]:
    from ertacache.tests.comfy.conftest import wan_weights

    seeds = count(100)

    def make() -> Bench:
        seed = next(seeds)
        name = f"random_wan_{seed}.safetensors"
        target = server.base / "models" / "diffusion_models" / name
        safetensors.torch.save_file(wan_weights(seed=seed), target)
        return Bench(server, name)

    return make


@pytest.fixture(scope="module")
def bench(make_bench: Callable[[], Bench]) -> Bench:
    return make_bench()


def sampling(model: str = "model", **more: Any) -> dict[str, Any]:
    """Inputs of KSampler and of the nodes like it."""
    links = {"model": [model, 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    return {**SETTINGS, **links, "seed": 5, **more}


def cached(speed: float = 2.0, **more: Any) -> dict[str, Any]:
    """With inputs of ERTA Options among its own, for which `Bench.graph` makes that node."""
    return node("ERTACachedSampler", **sampling(**{"speed": speed, **more}))


def full(model: str = "model", **more: Any) -> dict[str, Any]:
    return node("KSampler", **sampling(model, **more))


def save(of: str = "sampler") -> dict[str, Any]:
    return node("SaveLatent", samples=[of, 0], filename_prefix="nodes")


def profiling(name: str, **more: Any) -> dict[str, Any]:
    return node("ERTAProfile", **sampling(**{"runs": 2, "name": name, **more}))


def report(outputs: dict[str, Any], at: str = "sampler") -> dict[str, Any]:
    (found,) = outputs[at]["erta"]
    return dict(found)


def codes(found: dict[str, Any]) -> list[str]:
    """Of a report's notes."""
    return [note["code"] for note in found["notes"]]


@pytest.fixture(scope="module")
def profiled(bench: Bench) -> dict[str, Any]:
    """Outputs of a profile of two runs, kept as "mine", and of the sampler that it is connected to."""
    return bench.run(profile=profiling("mine"), sampler=cached(profile=["profile", 0]), save=save())


def test_a_profile_is_measured_kept_and_followed(bench: Bench, profiled: dict[str, Any]):
    assert (bench.store / "mine.safetensors").stat().st_size < 40_000
    assert report(profiled)["computed"] == STEPS // 2
    assert report(profiled)["calls"] == STEPS
    assert len(report(profiled)["predicted_error"]) == 2
    assert json.loads(report(profiled)["plan"])["compute"] == report(profiled)["compute"]
    profile = report(profiled, "profile")
    assert profile["name"] == "mine" and profile["measured"]["steps"] == STEPS
    halved = next(point for point in profile["curve"] if point["speed"] == 2.0)
    assert (halved["computed"], halved["of"]) == (STEPS // 2, STEPS)
    assert halved["compute"].count("1") == STEPS // 2 and 0.0 < halved["median"] <= halved["worst"]
    assert len(profile["sigmas"]) == STEPS
    assert len(profile["map"]) == STEPS and all(len(row) == STEPS for row in profile["map"])
    assert [row[i] for i, row in enumerate(profile["map"])] == [0.0] * STEPS


def test_the_knob_shows_what_other_speeds_come_to(profiled: dict[str, Any]):
    """As the profile predicts it, whose sampler this is; nothing where a preset takes the knob's place."""
    curve = report(profiled)["curve"]
    assert [point["computed"] for point in curve] == [
        point["computed"] for point in report(profiled, "profile")["curve"]
    ]
    (halved,) = [point for point in curve if point["speed"] == 2.0]
    assert halved["compute"] == report(profiled)["compute"]
    assert [halved["median"], halved["worst"]] == report(profiled)["predicted_error"]


def test_a_run_begins_with_what_is_planned_and_goes_on_with_what_was_done(bench: Bench, profiled: dict[str, Any]):
    outputs = bench.run(
        {"workflow": {"id": "drawn", "nodes": []}},
        profile=node("ERTALoadProfile", name="mine"),
        sampler=cached(profile=["profile", 0], seed=77),
        save=save(),
    )
    (begun,) = bench.heard("execution_start")
    about = {"node": "sampler", "prompt": begun["prompt_id"], "workflow": "drawn"}
    (planned,) = bench.heard("ertacache.plan")
    told = {"compute": report(outputs)["compute"], "sigmas": report(outputs)["sigmas"]}
    assert planned == {**about, **told, "left": STEPS // 2, "recording": False, "run": 0, "runs": 0}
    steps = bench.heard("ertacache.step")
    assert steps and all(planned["compute"].startswith(step["kinds"]) for step in steps)
    left = [STEPS // 2 - step["kinds"].count("1") for step in steps]
    assert steps == [{**about, "kinds": step["kinds"], "left": n} for step, n in zip(steps, left, strict=True)]
    assert bench.heard("ertacache.report") == [{**about, "report": report(outputs)}]


def bar(bench: Bench, at: str) -> list[tuple[int, int]]:
    """What ComfyUI's bar of a node came to: (value, of)."""
    return [(event["value"], event["max"]) for event in bench.heard("progress") if event["node"] == at]


def test_comfyuis_bar_counts_what_is_computed_in_all_runs(bench: Bench, profiled: dict[str, Any]):
    """So that the time left, which is told from it, is right. The bar of another pack's sampler is left alone."""
    load = node("ERTALoadProfile", name="mine")
    bench.run(profile=load, sampler=cached(profile=["profile", 0], seed=41), save=save())
    counts = bar(bench, "sampler")
    assert counts == sorted(counts) and counts[-1] == (STEPS // 2, STEPS // 2)
    assert {of for _, of in counts} == {STEPS // 2}
    bench.run(profile=profiling("counted", seed=42))
    counts, all_ = bar(bench, "profile"), 2 * STEPS + STEPS // 2
    assert counts == sorted(counts) and counts[-1] == (all_, all_) and {of for _, of in counts} == {all_}
    plans = bench.heard("ertacache.plan")
    assert [(one["recording"], one["run"], one["left"]) for one in plans] == [
        (True, 1, all_),
        (False, 1, STEPS + STEPS // 2),
        (True, 2, STEPS),
    ]
    (bench.store / "counted.safetensors").unlink()
    patch = node("ERTACache", model=["model", 0], speed=2.0, profile=["profile", 0])
    bench.run(profile=load, patch=patch, sampler=full("patch", seed=43), save=save())
    assert {of for _, of in bar(bench, "sampler")} == {STEPS}


def test_what_a_node_shows_is_text_and_strict_json(profiled: dict[str, Any]):
    for shown in profiled.values():
        json.dumps(shown, allow_nan=False)
    assert f"{STEPS // 2} of {STEPS} steps computed" in profiled["sampler"]["text"][0]
    assert "profile mine" in profiled["profile"]["text"][0]
    assert "how errors grow was measured" in profiled["profile"]["text"][0]
    assert codes(report(profiled, "profile")) == ["error_response_measured", "runs_recorded"]


def test_a_kept_profile_is_loaded_by_its_name(bench: Bench, profiled: dict[str, Any]):
    outputs = bench.run(
        profile=node("ERTALoadProfile", name="mine"), sampler=cached(profile=["profile", 0]), save=save()
    )
    assert torch.equal(bench.latent(outputs), bench.latent(profiled))
    assert report(outputs, "profile")["digest"] == report(profiled, "profile")["digest"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_to_load_is_refused_before_anything_runs(bench: Bench, name: str):
    with pytest.raises(PromptError, match="profile name"):
        bench.run(profile=node("ERTALoadProfile", name=name), sampler=cached(profile=["profile", 0]), save=save())


def test_a_workflow_with_a_missing_profile_renders_and_says_so(make_bench: Callable[[], Bench]):
    """A friend's: with the plan that it carries, else as without a profile. When the profile arrives, it is used."""
    bench, load = make_bench(), node("ERTALoadProfile", name="theirs")
    bench.run(profile=profiling("theirs"))
    graph = {"profile": load, "sampler": cached(profile=["profile", 0]), "save": save()}
    there = bench.run(**graph)
    plan, kept = report(there)["plan"], bench.store / "theirs.safetensors"
    content = kept.read_bytes()
    kept.unlink()
    carried = {**graph, "sampler": cached(profile=["profile", 0], plan=plan, seed=4)}
    outputs = bench.run(**carried)
    assert codes(report(outputs)) == ["profile_missing", "carried"]
    assert codes(report(outputs, "profile")) == ["profile_missing"]
    without = bench.run(**{**graph, "sampler": cached(profile=["profile", 0], without_profile="built-in plan")})
    assert codes(report(without))[0] == "profile_missing" and "built_in" in codes(report(without))
    kept.write_bytes(content)
    assert "profile_missing" not in codes(report(bench.run(**carried)))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_profile_name_is_refused_before_anything_runs(bench: Bench, name: str):
    before = bench.files()
    with pytest.raises(PromptError, match="profile name"):
        bench.run(profile=profiling(name))
    assert bench.files() == before


def test_a_hostile_profile_name_that_comes_by_a_link_is_refused_before_it_renders(bench: Bench):
    before = bench.files()
    with pytest.raises(WorkflowError, match="profile name") as caught:
        bench.run(text=node("PrimitiveString", value="../x"), profile=profiling(["text", 0]))
    assert caught.value.node_id == "profile"
    assert not bench.heard("progress")
    assert bench.files() == before


def test_a_profile_gives_out_the_plain_render(bench: Bench):
    outputs = bench.run(
        profile=profiling("plain", seed=31),
        shown=node("SaveLatent", samples=["profile", 1], filename_prefix="nodes"),
        reference=full(seed=31),
        kept=save("reference"),
    )
    assert torch.equal(bench.latent(outputs, "shown"), bench.latent(outputs, "kept"))


def test_a_profile_that_cannot_be_recorded_is_refused_and_keeps_nothing(bench: Bench):
    before = bench.files()
    with pytest.raises(WorkflowError, match=r"0 of 2 runs were measured\. everything computed: how often") as caught:
        bench.run(profile=profiling("impossible", sampler_name="dpm_adaptive"))
    assert caught.value.node_id == "profile"
    assert bench.files() == before


def test_switched_off_the_check_leaves_the_plan_as_it_is(bench: Bench, profiled: dict[str, Any]):
    """The input of that name arrives in the plan; on the profiled run itself it had nothing to say."""
    outputs = bench.run(
        profile=node("ERTALoadProfile", name="mine"), sampler=cached(profile=["profile", 0], check=False), save=save()
    )
    watched, unwatched = (json.loads(report(one)["plan"]) for one in (profiled, outputs))
    assert any(watched["residual_limits"]) and not any(unwatched["residual_limits"])
    assert watched["compute"] == unwatched["compute"] == report(outputs)["compute"]
    assert report(profiled)["computed"] == report(outputs)["computed"] == STEPS // 2


def test_cancelling_a_profile_keeps_nothing(bench: Bench):
    before = bench.files()
    asked: list[Event] = []

    def cancel(event: Event) -> None:
        """From the third step on: newer versions of ComfyUI do not report every step."""
        if event.type == "progress" and event.data["value"] >= 3 and not asked:
            asked.append(event)
            bench.server.client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        bench.run(hear=cancel, profile=profiling("cancelled", steps=500, runs=4))
    assert bench.files() == before


def test_the_first_render_measures_and_the_next_are_fast(make_bench: Callable[[], Bench]):
    bench = make_bench()
    reports = []
    for seed in (1, 2, 3):
        outputs = bench.run(sampler=cached(seed=seed), save=save())
        reports.append(report(outputs))
    assert [one["computed"] for one in reports] == [STEPS, STEPS // 2, STEPS // 2]
    assert codes(reports[0]) == ["recording_first", "recorded"]
    assert reports[1]["compute"] == reports[2]["compute"]
    assert len(reports[1]["predicted_error"]) == 2


def test_a_patched_model_from_the_servers_cache_works_each_time(bench: Bench, profiled: dict[str, Any]):
    """T16: only the seed changes, so the ERTA node itself is not run again. All runs have the same plan."""
    plans, latents = [], []
    for turn, seed in enumerate((11, 12, 13)):
        patch = node("ERTACache", model=["model", 0], speed=2.0, mode="planned", profile=["profile", 0])
        outputs = bench.run(
            {"workflow": {"id": f"drawn {turn}", "nodes": []}},
            profile=node("ERTALoadProfile", name="mine"),
            patch=patch,
            sampler=full("patch", seed=seed),
            save=save(),
        )
        (kept,) = bench.heard("execution_cached")
        assert ("patch" in kept["nodes"]) == (turn > 0)
        (event,) = bench.heard("ertacache.report")
        assert event["node"] == "patch" and event["prompt"] == kept["prompt_id"]
        assert event["workflow"] == (None if turn else "drawn 0"), "it has only seen that of its own prompt"
        assert event["report"]["computed"] == STEPS // 2
        plans.append(event["report"]["plan"])
        latents.append(bench.latent(outputs))
    assert len(set(plans)) == 1
    assert not torch.equal(latents[0], latents[1])


def test_the_patch_and_the_sampler_render_the_same(bench: Bench, profiled: dict[str, Any]):
    patch = node("ERTACache", model=["model", 0], speed=2.0, mode="planned", profile=["profile", 0])
    outputs = bench.run(profile=node("ERTALoadProfile", name="mine"), patch=patch, sampler=full("patch"), save=save())
    assert torch.equal(bench.latent(outputs), bench.latent(profiled))


def custom(sigmas: str, model: str = "patch") -> dict[str, Any]:
    links = {"model": [model, 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0]}
    return node(
        "SamplerCustom", **links, add_noise=True, noise_seed=5, cfg=3.0, sampler=["euler", 0], sigmas=[sigmas, 0]
    )


def paper_graph(mode: str) -> dict[str, Any]:
    """The paper's mode with its timestep adjustment as a node of its own."""
    links = {"model": ["model", 0], "profile": ["profile", 0]}
    return {
        "profile": profiling("paper", level="blocks"),
        "patch": node("ERTACache", **links, speed=2.0, mode=mode, level="blocks"),
        "plain": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=STEPS, denoise=1.0),
        "moved": node("ERTATimestepAdjuster", model=["patch", 0], sigmas=["plain", 0]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
    }


def test_the_timestep_adjuster_moves_the_sigmas_of_a_custom_sampler(bench: Bench):
    adjusted = bench.run(**paper_graph("planned"), sampler=custom("moved"), save=save())
    (moved,) = bench.heard("ertacache.report")
    bench.run(**paper_graph("planned"), sampler=custom("plain"), save=save())
    (plain,) = bench.heard("ertacache.report")
    assert moved["report"]["computed"] == plain["report"]["computed"] == STEPS // 2
    pairs = list(zip(moved["report"]["sigmas"], plain["report"]["sigmas"], strict=True))
    assert all(ours >= theirs - 1e-6 for ours, theirs in pairs), "reused steps are shorter"
    assert any(ours > theirs + 1e-4 for ours, theirs in pairs)
    assert bench.latent(adjusted).isfinite().all()


def test_timesteps_are_not_adjusted_twice(bench: Bench):
    with pytest.raises(WorkflowError, match=r"in mode paper .* adjusts the timesteps itself"):
        bench.run(**paper_graph("paper"), sampler=custom("moved"), save=save())


@pytest.mark.parametrize("patched", [False, True])
def test_the_timestep_adjuster_needs_a_cache_with_a_profile(bench: Bench, patched: bool):
    nodes = paper_graph("planned")
    del nodes["patch"]["inputs"]["profile"], nodes["profile"]
    if not patched:
        nodes["moved"]["inputs"]["model"] = ["model", 0]
    with pytest.raises(WorkflowError, match="has no profile" if patched else "has no ERTA Cache") as caught:
        bench.run(**nodes, sampler=custom("moved"), save=save())
    assert caught.value.node_id == "moved" and "Connect" in caught.value.message


def test_another_models_profile_is_refused_with_the_remedy(make_bench: Callable[[], Bench], profiled: dict[str, Any]):
    other = make_bench()
    with pytest.raises(
        WorkflowError,
        match=r"made with another model file or weight type\. Disconnect it, or record a new one",
    ):
        other.run(profile=node("ERTALoadProfile", name="mine"), sampler=cached(profile=["profile", 0]), save=save())
    (refused,) = other.heard("ertacache.refused")
    assert refused["node"] == "sampler" and "Disconnect it" in refused["words"]


def test_speed_one_is_ksampler_to_the_bit(bench: Bench):
    outputs = bench.run(sampler=cached(1.0), reference=full(), save=save(), kept=save("reference"))
    assert torch.equal(bench.latent(outputs), bench.latent(outputs, "kept"))
    assert report(outputs)["reused"] == 0


def test_of_two_caches_in_a_row_the_last_one_counts(bench: Bench, profiled: dict[str, Any]):
    links = {"profile": ["profile", 0]}
    outputs = bench.run(
        profile=node("ERTALoadProfile", name="mine"),
        first=node("ERTACache", model=["model", 0], speed=4.0, **links),
        second=node("ERTACache", model=["first", 0], speed=2.0, **links),
        sampler=full("second"),
        save=save(),
    )
    (event,) = bench.heard("ertacache.report")
    assert (event["node"], event["report"]["computed"]) == ("second", STEPS // 2)
    assert torch.equal(bench.latent(outputs), bench.latent(profiled))


def test_two_samplers_in_a_row_have_a_run_and_a_report_each(bench: Bench, profiled: dict[str, Any]):
    outputs = bench.run(
        profile=node("ERTALoadProfile", name="mine"),
        first=cached(profile=["profile", 0]),
        sampler=cached(profile=["profile", 0], latent_image=["first", 0], denoise=0.5, speed=1.5),
        kept=save("first"),
        save=save(),
    )
    assert report(outputs, "first")["computed"] == STEPS // 2
    assert 0 < report(outputs)["reused"] < report(outputs)["calls"] == STEPS
    assert torch.equal(bench.latent(outputs, "kept"), bench.latent(profiled))
    assert not torch.equal(bench.latent(outputs), bench.latent(outputs, "kept"))


def test_impossible_settings_are_refused_in_words(bench: Bench, profiled: dict[str, Any]):
    with pytest.raises(PromptError, match="speed"):
        bench.run(sampler=cached(0.5), save=save())
    with pytest.raises(WorkflowError, match=r"'renamed' does not ship with this version; choose one of"):
        bench.run(sampler=cached(preset="renamed"), save=save())
    with pytest.raises(WorkflowError, match="speed"):
        bench.run(sampler=cached(float("nan")), save=save())
    for value in (7, None, {"a": 1}):
        with pytest.raises(WorkflowError, match=r"preset .* does not ship with this version; choose one of"):
            bench.run(sampler=cached(preset=value), save=save())
        with pytest.raises(PromptError, match=r"profile name .*: use 1 to 64 of the characters|no such name"):
            bench.run(profile=node("ERTALoadProfile", name=value), sampler=cached(profile=["profile", 0]), save=save())
    for graph in ({"sampler": cached(cfg=float("nan")), "save": save()}, {"profile": profiling("x", cfg=float("nan"))}):
        with pytest.raises(WorkflowError, match=r"cfg is 'nan'; it must be a number"):
            bench.run(**graph)
    with pytest.raises(WorkflowError, match="profile is 'mine'; it must be connected to ERTA Profile"):
        bench.run(sampler=cached(profile="mine"), save=save())


def test_runs_that_fit_no_file_are_refused_before_they_are_rendered(bench: Bench):
    with pytest.raises(
        WorkflowError, match=r"runs is 16, but at 300 model calls a profile holds at most 15\. Set runs"
    ):
        bench.run(profile=profiling("large", steps=300, runs=16))
    assert not bench.heard("progress")


def as_drawn(kind: str) -> dict[str, Any]:
    """The least of a UI workflow: our node and its last widgets, of which the plan is the last but two."""
    of_type = {"sampler": "ERTACachedSampler", "patch": "ERTACache"}[kind]
    return {"workflow": {"nodes": [{"id": kind, "type": of_type, "widgets_values": ["none", ""]}]}}


def with_cache(kind: str, plan: str = "") -> dict[str, dict[str, Any]]:
    """A sampler with the knob, or a patched model and a KSampler."""
    if kind == "sampler":
        return {"sampler": cached(plan=plan), "save": save()}
    patch = node("ERTACache", model=["model", 0], speed=2.0, mode="planned", plan=plan)
    return {"patch": patch, "sampler": full("patch"), "save": save()}


@pytest.mark.parametrize("kind", ["sampler", "patch"])
def test_a_saved_file_renders_the_same_where_the_profile_is_gone(make_bench: Callable[[], Bench], kind: str):
    bench = make_bench()

    def run(plan: str = "", drawn: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs = bench.run(drawn, **with_cache(kind, plan))
        return outputs, report(outputs) if kind == "sampler" else bench.heard("ertacache.report")[-1]["report"]

    bench.run(sampler=cached(seed=1), save=save())
    first, found = run(drawn=as_drawn(kind))
    carried = bench.workflow(first)["nodes"][0]["widgets_values"][-1]
    assert carried == found["plan"]
    for note in found["notes"]:
        if note["code"] == "profile_found":
            (bench.store / f"{note['values']['name']}.safetensors").unlink()
    again, found = run(carried)
    assert "carried" in codes(found)
    assert torch.equal(bench.latent(again), bench.latent(first))
    assert found["plan"] == carried
    _, found = run()
    assert found["computed"] == STEPS, "without the plan it is measured anew"


def test_nothing_asked_means_nothing_run(bench: Bench, profiled: dict[str, Any]):
    """The same prompt once more, as when Queue is pressed and nothing was changed."""
    graph = {"sampler": cached(seed=77, without_profile="built-in plan"), "save": save()}
    bench.run(as_drawn("sampler"), **graph)
    again = bench.run(as_drawn("sampler"), **graph)
    (kept,) = bench.heard("execution_cached")
    assert "sampler" in kept["nodes"] and "save" in again
    if bench.server.client.object_info("ERTACachedSampler").get("has_intermediate_output"):
        assert report(again)["reused"] > 0, "the report of the run that made it"
    else:
        assert "sampler" not in again, "this ComfyUI does not send it again"


def test_a_sampler_that_nothing_hangs_on_does_not_run(bench: Bench):
    outputs = bench.run(idle=cached(seed=78), sampler=full(), save=save())
    assert set(outputs) == {"save"} and not bench.heard("ertacache.plan")
    with pytest.raises(PromptError, match="no outputs"):
        bench.run(sampler=cached(seed=79))


def test_the_front_end_part_is_served(server: ComfyServer):
    with urllib.request.urlopen(f"{server.url}/extensions/ertacache/ertacache.js") as answer:
        assert b"registerExtension" in answer.read()
