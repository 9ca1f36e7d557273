"""The demo end to end in a real server: its workflow files, its nodes, what it prints, draws and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ertacache.demo import run as demo
from ertacache.demo.client import ServerError
from ertacache.demo.comfyui import ROOT, VERSION, version
from ertacache.demo.graphs.make import HERE, NAMES, PROFILE_PROMPT, text, workflow
from ertacache.demo.methods import EASYCACHE, FULL, Render, Studio
from ertacache.demo.results import score
from ertacache.demo.server import ComfyServer
from ertacache.demo.tiny_wan.clips import FRAMES, SIZE, held_out, unseen_prompts
from ertacache.demo.tiny_wan.words import describe, parse
from ertacache.demo.workflows import ui_to_api

STEPS = 12


@pytest.fixture(scope="module")
def studio(server: ComfyServer) -> Studio:
    return Studio(server)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One quick run of the demo with a server of its own: its output folder and results.json."""
    folder = tmp_path_factory.mktemp("demo")
    assert demo.main(["--quick", "--steps", str(STEPS), "--output", str(folder)]) == 0
    return folder, json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_file_is_as_the_nodes_declare_themselves(server: ComfyServer, name: str):
    """Fails when an input was added or moved: draw the files anew with python -m demo.graphs.make."""
    if version(server.comfy) != VERSION:
        pytest.skip(f"the files are drawn with ComfyUI {VERSION}")
    assert (HERE / f"{name}.json").read_text(encoding="utf-8") == text(workflow(name, server.client.object_info()))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_file_runs_and_saves_what_it_rendered(server: ComfyServer, name: str):
    """As it is but for the number of steps; the server checks every input and link when it is queued."""
    api = ui_to_api(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")), server.client.object_info())
    for node in api.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 8
    outputs = server.client.run(api)["outputs"]
    saved = {key: shown[key][0] for shown in outputs.values() for key in ("latents", "images") if key in shown}
    assert server.client.view(**saved["images"])[8:12] == b"WEBP"
    assert server.client.view(**saved["latents"])


def test_a_workflow_file_has_no_overlapping_nodes():
    for name in NAMES:
        nodes = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
        for one in nodes:
            for other in nodes:
                apart = any(
                    one["pos"][axis] + one["size"][axis] < other["pos"][axis]
                    or other["pos"][axis] + other["size"][axis] < one["pos"][axis]
                    for axis in (0, 1)
                )
                assert one is other or apart, (name, one["title"], other["title"])


def test_the_profile_is_recorded_on_a_prompt_that_is_not_rendered_later():
    assert not held_out(parse(PROFILE_PROMPT))
    assert PROFILE_PROMPT not in map(describe, unseen_prompts())


def test_decode_enlarges_each_pixel(server: ComfyServer):
    api = ui_to_api(json.loads((HERE / "full.json").read_text(encoding="utf-8")), server.client.object_info())
    sampler = next(node for node in api.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["steps"] = 2
    outputs = server.client.run(api)["outputs"]
    (entry,) = next(shown["images"] for shown in outputs.values() if "images" in shown)
    target = server.base / "output" / entry["subfolder"] / entry["filename"]
    with Image.open(target) as animation:
        assert (animation.n_frames, animation.size) == (FRAMES, (4 * SIZE, 4 * SIZE))


def easycache(studio: Studio, copied: bool, threshold: float = 0.3) -> Render:
    changes: dict[str, Any] = {"EasyCache.reuse_threshold": threshold, "EasyCache.verbose": True, "steps": 30}
    if not copied:
        changes["EasyCache.model"] = ["1", 0]
    return studio.render(EASYCACHE, changes)


def test_t1_easycache_spoils_an_fp32_flow_model_unless_it_is_handed_a_copy(studio: Studio):
    full = studio.render(FULL, {"steps": 30})
    with_copy, without = (score(full, easycache(studio, copied)) for copied in (True, False))
    assert with_copy.psnr > without.psnr + 6.0, (with_copy, without)
    assert with_copy.error < 0.5 * without.error


def test_the_copy_changes_nothing_where_nothing_is_reused(studio: Studio):
    full = studio.render(FULL, {"steps": 30})
    untouched = easycache(studio, copied=True, threshold=0.0)
    assert untouched.calls == 30
    assert torch.equal(untouched.latent, full.latent)


def test_the_pattern_of_easycache_agrees_with_its_count(studio: Studio):
    render = easycache(studio, copied=True)
    assert len(render.compute) == 30
    assert render.compute.count("1") == render.calls < 30


def test_planned_mode_computes_what_was_planned(finished: tuple[Path, dict[str, Any]]):
    _, results = finished
    planned = next(point for point in results["profile"]["curve"] if point["speed"] == 2.0)
    assert planned["computed"] == STEPS // 2
    for render in results["methods"]["planned"]:
        assert render["calls"] == render["compute"].count("1") == STEPS // 2
        assert len(render["compute"]) == render["steps"] == STEPS
        assert len(render["predicted_error"]) == 2


def test_all_methods_are_compared_on_the_same_prompts(finished: tuple[Path, dict[str, Any]]):
    _, results = finished
    assert [job["prompt"] for job in results["jobs"]] == [describe(ids) for ids in unseen_prompts(2)]
    methods = results["methods"]
    assert set(methods) == {"full", "planned", "builtin", "paper", "easycache", "fewer"}
    assert {len(renders) for renders in methods.values()} == {2}
    assert all(render["seconds"] > 0 for renders in methods.values() for render in renders)
    assert all(render["calls"] == STEPS // 2 for render in methods["fewer"])
    assert all(render["psnr"] is None for render in methods["full"]), "the full run is not its own reference"
    assert all("built_in" in [note["code"] for note in render["notes"]] for render in methods["builtin"])


def test_the_table_names_every_method_and_how_easycache_was_treated(finished: tuple[Path, dict[str, Any]]):
    folder, _ = finished
    table = (folder / "table.md").read_text(encoding="utf-8")
    lines = table.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:8]] == [
        "Full run",
        "ERTA planned, 2×",
        "ERTA built-in plan, 2×",
        "ERTA paper mode, 2×",
        "EasyCache",
        f"Fewer steps: {STEPS // 2}",
    ]
    assert len({len(line) for line in lines[:8]}) == 1
    assert "handed a copy" in table


def test_the_pictures_are_there(finished: tuple[Path, dict[str, Any]]):
    folder, _ = finished
    with Image.open(folder / "side_by_side.webp") as animation, Image.open(folder / "side_by_side.png") as still:
        assert animation.n_frames == FRAMES
        assert animation.size == still.size
        assert still.width > 4 * 4 * SIZE
    with Image.open(folder / "plan.png") as plan:
        assert plan.width > 1000


def test_without_a_model_it_says_how_to_train_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert demo.main(["--model", str(tmp_path / "none.safetensors")]) == 1
    assert "python -m demo.train" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "status"), [(KeyboardInterrupt(), 130), (ServerError("it died"), 1)])
def test_however_it_ends_the_server_ends_with_it(
    problem: BaseException, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stand-in for the server notes that it was left; that leaving ends the process is tested in test_lifecycle."""
    left = []

    class StandIn:
        base = tmp_path

        def __enter__(self) -> StandIn:
            return self

        def __exit__(self, kind: type[BaseException], *_: object) -> None:
            left.append(kind)

    def fail(_: object) -> None:
        raise problem

    (tmp_path / "models" / "diffusion_models").mkdir(parents=True)
    monkeypatch.setattr(demo, "ComfyServer", StandIn)
    monkeypatch.setattr(demo, "Studio", fail)
    assert demo.main([]) == status
    assert left == [type(problem)]


def test_the_latent_format_may_import_others_of_its_comfyui(tmp_path: Path):
    """As newer ones do. In a process of its own: in this one a ComfyUI may be imported already."""
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "nested.py").write_text("NUMBER = 7")
    (tmp_path / "comfy" / "latent_formats.py").write_text(
        "import comfy.nested\nclass Wan21: number = comfy.nested.NUMBER"
    )
    code = "import sys; from pathlib import Path; from demo.methods import latent_format; before = list(sys.path)\n"
    code += "print(latent_format(Path(sys.argv[1])).number, sys.path == before)"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "7 True\n", ran.stderr
