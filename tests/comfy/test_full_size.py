"""Full size: every configuration runs, what it counts is right, and its arithmetic has known results."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ertacache.tests.comfy.conftest import only_on_cpu

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8

ON_CPU = "its bytes are those of float32 in main memory"


@pytest.fixture(scope="module")
def full_size(comfy_pack):
    from ertacache.bench import full_configs, full_costs, full_count, full_model, full_run, full_size, full_tables

    return SimpleNamespace(
        configs=full_configs,
        costs=full_costs,
        count=full_count,
        model=full_model,
        run=full_run,
        command=full_size,
        tables=full_tables,
    )


@pytest.fixture(scope="module")
def configs(full_size):
    """All but the graph breaks, which have a test of their own: each takes Dynamo seconds."""
    return [config for config in full_size.configs.every(full_size.configs.DRY) if config.kind != "breaks"]


@pytest.fixture(scope="module")
def study(full_size, configs, tmp_path_factory):
    """A dry run of all of them."""
    made = full_size.command.Study(full_size.configs.DRY, tmp_path_factory.mktemp("full"))
    made.lines = list(full_size.command.measure_all(made, configs, 1000.0))
    return made


@pytest.fixture(scope="module")
def model(full_size):
    return full_size.model.FullModel(full_size.model.TINY["1.3B"])


@pytest.fixture(scope="module")
def clip(full_size):
    return full_size.model.Clip(17, 128, 128)


@pytest.fixture(scope="module")
def counted(full_size, model, clip):
    return {name: full_size.count.count(model, name, clip, STEPS, STEPS // 2) for name in full_size.run.METHODS}


def of_kind(counted, method, computed):
    return [step for step in counted[method].steps if step["computed"] == computed]


# The command


def test_every_configuration_runs(study, configs):
    assert all(study.is_kept(config) for config in configs), study.lines
    assert len({config.name for config in configs}) == len(configs)


def test_the_configurations_are_those_of_the_real_model(full_size):
    real = full_size.configs.every(full_size.configs.FULL_SIZE)
    sizes = {config.model: config.size for config in real}
    assert (sizes["1.3B"].dim, sizes["1.3B"].ffn, sizes["1.3B"].layers) == (1536, 8960, 30)
    assert (sizes["14B"].dim, sizes["14B"].ffn, sizes["14B"].layers) == (5120, 13824, 40)
    assert all(config.shown == config.clip for config in real)
    whole = [config for config in real if config.kind == "whole"]
    assert {(config.steps, config.computed) for config in whole} == {(50, (34, 25, 20, 16))}
    shape = full_size.configs.P480.latent_shape
    assert shape == (1, 16, 21, 60, 104) and full_size.configs.P480.tokens == 32760


def test_a_second_call_measures_nothing(study, full_size, configs, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(full_size.command, "measured", fail)
    lines = list(full_size.command.measure_all(study, configs, 1000.0))
    assert [line.endswith("kept") for line in lines] == [True] * len(configs)


def test_another_process_finds_what_is_kept(study, full_size, configs):
    again = full_size.command.Study(full_size.configs.DRY, study.folder)
    assert all(again.is_kept(config) for config in configs)
    streamed = full_size.command.Study(full_size.configs.DRY, study.folder, streaming=True)
    assert all(streamed.is_kept(config) for config in configs), "one report for what was measured with and without"
    other = full_size.command.Study(full_size.configs.ON_CPU, study.folder)
    assert not any(other.is_kept(config) for config in configs), "another way to measure is not the same"


def test_nothing_is_begun_that_does_not_fit_into_the_time(full_size, configs, tmp_path):
    fresh = full_size.command.Study(full_size.configs.DRY, tmp_path)
    lines = list(full_size.command.measure_all(fresh, configs[:1], full_size.command.SPARE_SECONDS + 0.01))
    assert "left for the next call: a step takes" in lines[0]
    assert not fresh.is_kept(configs[0])
    lines = list(full_size.command.measure_all(fresh, configs[:1], 1.0))
    assert lines[0].endswith("left for the next call"), "too little to begin with"


def test_streaming_needs_a_gpu(full_size, tmp_path):
    study = full_size.command.Study(full_size.configs.FULL_SIZE, tmp_path)
    streaming = [c for c in full_size.configs.every(full_size.configs.FULL_SIZE) if c.kind == "streaming"]
    assert "GPU" in study.why_not(streaming[0])


def test_results_are_written_and_say_what_they_are(study, full_size, configs, tmp_path):
    results = [study.kept(config) for config in configs]
    full_size.tables.write_results(results, study.facts, study.how, tmp_path)
    report = (tmp_path / "full_size.md").read_text(encoding="utf-8")
    device = "CPU" if study.facts["device"] == "cpu" else study.facts["device"]
    assert report.startswith(f"# {device}, dry run; docs/measured/gpu.md has full size on a GPU")
    for part in (study.facts["torch"], study.facts["comfyui"], "## Speed", "## Recording", "## How it grows"):
        assert part in report
    written = json.loads((tmp_path / "full_size.json").read_text(encoding="utf-8"))
    assert len(written["results"]) == len(configs) and written["facts"] == study.facts
    assert (tmp_path / "full_size.png").stat().st_size > 0


def test_a_gpu_is_named_with_its_driver(full_size):
    facts = {"device": "A card", "driver": "1.2", "cuda": "3.4", "cpus": 1, "cpu": "x", "threads": 1, "torch": "2"}
    report = full_size.tables.report([], {**facts, "comfyui": "0", "python": "3"}, full_size.configs.FULL_SIZE)
    assert "on A card" in report and "driver 1.2" in report


def test_only_picks_by_whole_words(full_size, configs):
    chosen = [c.name for c in configs if full_size.command.meant(c, ["14B", "720p", "OUTPUT"])]
    assert chosen == ["speed 14B 720p 81 frames output"]


# What is counted


@pytest.mark.parametrize("method", ["output", "blocks"])
def test_no_host_synchronisation_on_a_reused_step(counted, method):
    reused = of_kind(counted, method, computed=False)
    assert len(reused) == STEPS // 2
    assert all(not step["reads"] for step in reused)


def test_the_count_sees_a_read(counted, full_size, model, clip, monkeypatch):
    assert any(step["reads"] for step in of_kind(counted, "EasyCache", computed=False)), "it compares tensors"
    from ertacache.erta.replay import Replay

    predict = Replay.predict

    def reading(self, i, key):
        found = predict(self, i, key)
        return found if found is None or float(found.mean()) < 1e30 else None

    monkeypatch.setattr(Replay, "predict", reading)
    broken = full_size.count.count(model, "output", clip, STEPS, STEPS // 2)
    assert all(step["reads"] for step in broken.steps if not step["computed"])


def test_a_reused_step_is_a_handful_of_operations(counted):
    assert max(step["operations"] for step in of_kind(counted, "output", computed=False)) <= 6
    assert min(step["operations"] for step in of_kind(counted, "output", computed=True)) > 100


def test_level_output_takes_at_most_three_latents(counted, clip):
    above = counted["output"].peak - counted["full"].peak
    assert 0 < above <= 3 * clip.latent_bytes


def test_the_ledger_sees_what_is_held(counted, full_size, model, clip, monkeypatch):
    """Replay made to keep all that it sees: 4 latents at 4 computed steps, and no longer within the bar."""
    from ertacache.erta.replay import Replay

    held = []
    observe = Replay.observe
    monkeypatch.setattr(Replay, "observe", lambda self, i, key, f: (held.append(f), observe(self, i, key, f))[1])
    broken = full_size.count.count(model, "output", clip, STEPS, STEPS // 2)
    assert broken.peak - counted["full"].peak > 3 * clip.latent_bytes


def test_level_blocks_takes_what_is_predicted(counted, full_size, model, clip):
    only_on_cpu(ON_CPU)
    predicted = full_size.costs.blocks_bytes(clip.tokens, 1, model.size.dim, 4)
    assert counted["blocks"].peak - counted["full"].peak == pytest.approx(predicted, rel=0.05)


def test_offloaded_it_takes_nothing_while_the_blocks_run(counted, full_size, model, clip):
    """Main memory counts as apart here, so what is fetched counts as new."""
    only_on_cpu(ON_CPU)
    feature = 2 * clip.tokens * model.size.dim * 4
    assert counted["blocks offloaded"].peak - counted["full"].peak < 0.01 * feature
    there, apart = (
        max(step["made_bytes"] for step in of_kind(counted, method, computed=False))
        for method in ("blocks", "blocks offloaded")
    )
    moved = full_size.costs.moved_bytes(clip.tokens, 1, model.size.dim, 4)
    assert apart - there == pytest.approx(moved[1], rel=0.01)


def test_recording_the_blocks_takes_nothing_while_they_run(counted, full_size, model, clip, monkeypatch):
    """Beside the recorder's own samples, which lie in main memory wherever the model is."""
    only_on_cpu(ON_CPU)
    from ertacache.erta.recorder import Recorder

    monkeypatch.setattr(Recorder, "observe", lambda self, i, key, feature: feature)
    found = full_size.count.count(model, "record blocks", clip, STEPS, STEPS)
    assert found.peak - counted["full"].peak < 0.01 * clip.tokens * model.size.dim * 4


def test_a_recorder_holds_one_latent_per_call_in_ram(counted, full_size, model, clip):
    only_on_cpu(ON_CPU)
    # Beside them at most what one model call needs for the moment.
    above = counted["record"].peak - counted["full"].peak
    assert (STEPS - 2) * clip.latent_bytes < above <= (STEPS + 1) * clip.latent_bytes
    watched = full_size.run.run(model, "record", clip, STEPS, STEPS)
    assert watched.cache_bytes == STEPS * clip.latent_bytes


def test_what_a_recorder_holds_of_14b_at_720p_stays_small(full_size):
    """50 model calls: below 1 GB of RAM, whatever the level, since features are sampled."""
    from ertacache.erta.recorder import sampled

    clip = full_size.configs.P720
    for elements in (clip.latent_bytes // 4, clip.tokens * 5120):
        kept = sampled(torch.zeros(1, dtype=torch.bool).expand(elements))
        assert kept.numel() * 4 * 50 < 0.5e9


def test_no_graph_break_is_added_at_level_output(full_size, monkeypatch):
    def reading(model, patcher, steps, wanted, on_report):
        """A cache that looks at the latent within the compiled region, as EasyCache does."""
        from comfy.patcher_extension import WrappersMP

        def look(executor, x, *args, **kwargs):
            return executor(x if x.mean().item() < 1e30 else x + 1.0, *args, **kwargs)

        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
        return patcher

    monkeypatch.setitem(full_size.run.METHODS, "reading", reading)
    model = full_size.model.FullModel(full_size.model.Size(128, 128, 1, 4))
    clip = full_size.model.Clip(1, 32, 32)
    names = ("full", "output", "reading")
    full, ours, broken = (full_size.count.graph_breaks(model, name, clip, 6, 3, True) for name in names)
    assert full.frames > 0, "nothing was compiled"
    assert (ours.breaks, ours.frames, ours.again) == (full.breaks, full.frames, full.again)
    assert broken.breaks > full.breaks


# Which steps are computed


def test_easycache_computes_as_many_steps_as_asked(full_size, model, clip):
    compute = full_size.run.easycache_schedule(STEPS, 4)
    assert sum(compute) == 4 and compute[0] and compute[1]
    watched = full_size.run.run(model, "EasyCache", clip, STEPS, 4)
    assert tuple(stack > 0.0 for stack in watched.stacks) == compute


@pytest.mark.parametrize("method", ["output", "blocks"])
def test_ours_computes_as_many_steps_as_asked(full_size, model, clip, method):
    watched = full_size.run.run(model, method, clip, STEPS, 4)
    assert sum(stack > 0.0 for stack in watched.stacks) == 4
    assert len(watched.steps) == STEPS - 1
    assert (watched.peak is None) == (model.device.type == "cpu")


# Arithmetic


def test_a_runs_time_follows_from_its_steps(full_size):
    Costs = full_size.costs.Costs
    full, cached = Costs(fixed=1.0, computed=2.0), Costs(fixed=3.0, computed=2.5, reused=0.5)
    assert full.run_seconds(50, 50) == 101.0  # 1 + 50 * 2
    assert cached.run_seconds(50, 20) == 68.0  # 3 + 20 * 2.5 + 30 * 0.5
    assert full_size.costs.share_kept(full, cached, 50, 20) == pytest.approx(101.0 / 68.0 * 20 / 50)
    assert full_size.costs.share_kept(Costs(0.0, 2.0), Costs(0.0, 2.0), 50, 20) == 1.0


def run_of(method, laps, kinds, wanted, outside, first=5.0, end=1.0):
    """A watched run with blocks of lap - outside seconds in computed steps; the model takes all but 0.25 of it."""
    stacks = [lap - outside if computed else 0.0 for lap, computed in zip(laps, kinds, strict=True)]
    models = [lap - 0.25 if computed else 0.0 for lap, computed in zip(laps, kinds, strict=True)]
    return {
        "method": method,
        "wanted": wanted,
        "seconds": first + sum(laps[1:]) + end,
        "first": first,
        "steps": laps[1:],
        "models": models,
        "stacks": stacks,
        "peak": None,
    }


def test_costs_follow_from_runs(full_size):
    # Full: steps of 2 s of which 0.5 lie outside of the blocks. Blocks: 0.75 outside, and reused steps of 0.25 s. The
    # second is slower for another reason, in the blocks, and that does not count.
    full = run_of("full", [2.0] * 4, [True] * 4, 4, 0.5)
    cached = run_of("blocks", [3.0, 0.25, 3.0, 0.25], [True, False, True, False], 2, 0.75)
    of_full, its = full_size.costs.costs([full, cached], "blocks")
    assert (of_full.computed, its.own, its.computed, its.reused) == (2.0, 0.25, 2.25, 0.25)
    assert of_full.fixed == 4.0  # first 5 + end 1, less step 0 itself, 2
    assert its.fixed == 3.0  # 6 - 3
    share, computed = full_size.costs.measured_share([full, cached], "blocks", 2)
    assert computed == 2 and share == pytest.approx(12.0 / 9.5 * 2 / 4)  # 5 + 3 * 2 + 1 over 5 + 3.5 + 1
    # Blocks: 4 x 1.5 of 12 s and 2 x 2.25 of 9.5 s.
    assert full_size.costs.share_by_blocks([full, cached], "blocks", 2) == pytest.approx(4.5 / 9.5 / (6.0 / 12.0))
    assert full_size.costs.spread([full]) == 0.0


def test_recording_is_measured_over_a_whole_run(full_size):
    full = full_size.costs.Costs(fixed=0.0, computed=2.0)
    assert full_size.costs.recording_share(full, 0.02, 1.0, 50) == pytest.approx(0.02)  # (50 * 0.02 + 1) / 100
    assert full_size.costs.recording_share(full, -0.02, 1.0, 50) == pytest.approx(0.01)


def test_memory_of_level_blocks_at_real_dimensions(full_size):
    # 32760 tokens x 5120 x 2 bytes, both conds, two features each and what went in: 6 x 335 MB.
    assert full_size.costs.blocks_bytes(32760, 1, 5120, 2) == 6 * 335_462_400
    assert full_size.costs.moved_bytes(32760, 1, 5120, 2) == (6 * 335_462_400, 4 * 335_462_400)
