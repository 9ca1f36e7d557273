"""The bench at settings that artists render with: configs with a base, two stages, first-run profiles, tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ertacache.tests.comfy.wordless import calibration_of, rigs

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, BOUNDARY = 20, 10


@pytest.fixture(scope="module")
def config(comfy_pack):
    from ertacache.bench.config import read_config

    return replace(read_config("two_experts"), profile_runs=2, tuning_prompts=1)


@pytest.fixture(scope="module")
def make_rig(config, wan):
    return rigs(wan, config, prompts=2)


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig()


@pytest.fixture(scope="module")
def full(rig):
    return rig.sample(rig.model, rig.test[0])


@pytest.fixture(scope="module")
def calibration(rig, tmp_path_factory):
    return calibration_of(rig, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def place(rig, calibration):
    from ertacache.bench.methods import Place

    return lambda budget: Place(rig, calibration, budget)


@pytest.fixture
def methods(comfy_pack):
    from ertacache.bench.ours import ours
    from ertacache.bench.rivals import rivals

    return {method.name: method for method in [*ours(), *rivals(())]}


def error(result, reference):
    return float((result - reference).norm() / reference.norm())


# Configs with a base


def test_a_config_has_its_own_name_and_else_its_bases_keys(comfy_pack, tmp_path):
    from ertacache.bench.config import read_config

    (tmp_path / "below.toml").write_text(
        'name = "mine"\nmodel = "m"\nsampler = "euler"\nscheduler = "simple"\nsteps = 50\nguidance = 5.0\n'
    )
    (tmp_path / "above.toml").write_text('base = "below"\nsteps = 20\n')
    above, below = (read_config(str(tmp_path / f"{name}.toml")) for name in ("above", "below"))
    assert above == replace(below, name="above", steps=20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "nothing"', r"base is 'nothing', it must be the name of a config beside it: above, whole$"),
        ("base = 3", "base is 3, it must be the name"),
        ('base = "above"', "base is 'above', which has a base itself; name one without"),
        ('base = "mine"', "base is 'mine', which has a base itself; name one without"),
        ('base = "whole"\nstepz = 3', "unknown keys stepz"),
        ('base = "whole"\nboundary = 50', "boundary is 50, it must be between 0 and the number of steps, 50"),
        ('base = "whole"\nboundary = -1', "boundary is -1, it must be"),
    ],
)
def test_a_base_that_cannot_be_used_says_why(comfy_pack, tmp_path, text, message):
    from ertacache.bench.config import ConfigError, read_config

    whole = 'model = "m"\nsampler = "euler"\nscheduler = "simple"\nsteps = 50\nguidance = 5.0\n'
    for name, content in (("whole", whole), ("above", 'base = "whole"'), ("mine", text)):
        (tmp_path / f"{name}.toml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(str(tmp_path / "mine.toml"))


def test_every_setting_is_a_config_of_its_own(comfy_pack):
    from ertacache.bench.config import read_config
    from ertacache.bench.settings import SETTINGS

    configs = [read_config(name) for name in SETTINGS]
    assert [config.name for config in configs] == list(SETTINGS), "kept rows lie in a folder of this name"
    assert len({json.dumps({**asdict(config), "name": ""}) for config in configs}) == len(configs)
    official = {c.name: (c.sampler, c.steps, c.boundary, c.guidance, c.shift) for c in configs}
    assert official["uni_pc_30"] == ("uni_pc", 30, 0, 6.0, 8.0)
    assert official["two_experts"] == ("euler", 20, 10, 3.5, 5.0)
    assert official["res_multistep_20"] == ("res_multistep", 20, 0, 5.0, 8.0)
    assert official["euler_25_without_guidance"] == ("euler", 25, 0, 1.0, 3.0)


# Two stages


def test_two_full_stages_give_what_one_run_gives(rig, make_rig, full):
    one = make_rig(boundary=0)
    expected = one.sample(one.model, one.test[0])
    assert full.calls == expected.calls == STEPS
    assert error(full.latent, expected.latent) < 1e-4


def test_fewer_steps_keep_the_boundarys_share(rig, config):
    assert config.stages() == (range(10), range(10, 20))
    assert config.stages(6) == (range(3), range(3, 6))
    assert replace(config, boundary=5).stages(6) == (range(2), range(2, 6))
    assert config.stages(2) == (range(1), range(1, 2))
    assert rig.sample(rig.model, rig.test[0], steps=7).calls == 7


def test_each_stage_has_its_model_and_calls_count_over_both(rig, full):
    from ertacache.bench.following import follow

    half = follow(rig.model, (True, False) * 5, "output")
    results = [rig.sample(models, rig.test[0]) for models in (rig.only(0, half), rig.only(1, half), (half, half))]
    assert [result.calls for result in results] == [15, 15, 10]
    errors = [error(result.latent, full.latent) for result in results]
    assert len(set(errors)) == 3 and min(errors) > 0


def test_a_budget_is_shared_between_the_stages(rig, place):
    from ertacache.bench.command import Bench

    assert [(part.stage, part.steps, part.budget) for part in place(14).parts()] == [(0, 10, 7), (1, 10, 7)]
    assert sum(part.budget for part in place(13).parts()) == 13
    # at 1.5x a cache on either model computes 7 of its 10: 14 in all, not 13
    assert [Bench.budget(SimpleNamespace(rig=rig), speed) for speed in (1.5, 2.0, 3.0)] == [14, 10, 6]


def test_the_stages_are_calibrated_apart(rig, calibration):
    from ertacache.bench.embeddings import measure_changes
    from ertacache.bench.magnitudes import measure_ratios

    profiles = [calibration.of_stage(n).profile("output") for n in (0, 1)]
    assert [profile.calls for profile in profiles] == [10, 10]
    assert profiles[0].sigmas.min() > profiles[1].sigmas.max()
    assert calibration.of_stage(1).ratios == pytest.approx(measure_ratios(rig, rig.profiling[0], 1))
    assert calibration.of_stage(1).ratios != calibration.ratios
    assert measure_changes(rig, rig.profiling[:1], 1).embedding.shape == (2, 9)  # of cond and uncond
    assert len(calibration.distances) == len(calibration.of_stage(1).distances) == 10
    assert calibration.of_stage(1).of_stage(0).profile("output").sigmas[0] == profiles[0].sigmas[0]


def test_every_method_of_the_tables_keeps_to_the_budget_in_two_stages(place, methods, rig, monkeypatch):
    from ertacache.bench import online, rivals
    from ertacache.bench.methods import Trial
    from ertacache.bench.settings import METHODS
    from ertacache.bench.stages import proposals_in_stages

    monkeypatch.setattr(rivals, "HALVINGS", 4)
    monkeypatch.setattr(online, "HALVINGS", 4)
    budget = 14
    for name in METHODS:
        calls = []
        proposals = proposals_in_stages(methods[name], place(budget))
        setting = next(proposals)
        for _ in range(6):
            calls.append(rig.sample(setting.patch(rig.model), rig.tuning[0], setting.steps).calls)
            try:
                setting = proposals.send(Trial(setting, calls[-1], 0.0))
            except StopIteration:
                break
        assert min(calls) <= budget, name
        assert budget - 3 <= max(calls, key=lambda c: -abs(c - budget)) <= budget + 2, name


def test_a_search_comes_to_one_threshold_for_both_stages(place):
    from ertacache.bench.methods import RIVAL, Method, Setting, Trial
    from ertacache.bench.stages import proposals_in_stages

    asked = []

    def propose(part):
        for n in range(2 + part.stage):
            trial = yield Setting(f"threshold {n}")
            asked.append((part.stage, trial.calls > part.budget))

    proposals = proposals_in_stages(Method("searched", RIVAL, propose, tuned=True), place(10))
    labels = [next(proposals).label]
    for calls in (11.0, 9.0):
        labels.append(proposals.send(Trial(Setting(""), calls, 0.0)).label)
    with pytest.raises(StopIteration):
        proposals.send(Trial(Setting(""), 9.0, 0.0))
    assert labels == ["threshold 0", "threshold 1", "threshold 1, then threshold 2"]
    assert asked == [(0, True), (1, True), (0, False), (1, False), (1, False)]


def test_a_method_that_cannot_do_one_stage_proposes_nothing(place, methods):
    from ertacache.bench.stages import proposals_in_stages

    assert next(proposals_in_stages(methods["GeoShrink"], place(8)), None)
    assert [part.budget for part in place(7).parts()] == [4, 3]
    assert next(proposals_in_stages(methods["GeoShrink"], place(7)), None) is None


# Self-recorded


def test_self_recorded_is_one_run_without_a_measured_error_response(calibration):
    from ertacache.bench.recording import self_recorded

    profile = calibration.profile("output")
    assert len(profile.tables) == 2 and profile.tables[0].has_error_response, "otherwise this could not fail"
    found = self_recorded(profile)
    assert [table.run for table in found.tables] == [0]
    assert not found.tables[0].has_error_response
    assert np.array_equal(found.tables[0].gram, profile.tables[0].gram)
    assert found.measured == profile.measured


def test_self_recorded_is_what_the_pack_records_by_itself(calibration, rig, store, monkeypatch):
    """The profile that a first run with the loader node alone leaves behind."""
    from ertacache.bench.recording import self_recorded
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.erta.settings import Settings

    task = Caching(Settings(2.0), store, lambda report: None, scheduler=rig.config.scheduler)
    rig.sample(rig.only(0, attach(rig.model, task)), rig.profiling[0])
    (name,) = store.names()
    by_itself, ours = store.load(name), self_recorded(calibration.profile("output"))
    assert by_itself.measured == ours.measured
    assert len(by_itself.tables) == len(ours.tables) == 1
    for field in ("sigmas", "gram", "l1", "norm1", "mean", "gain", "deviation"):
        assert np.allclose(getattr(by_itself.tables[0], field), getattr(ours.tables[0], field), rtol=1e-5), field


def test_the_self_recorded_method_plans_with_that_profile(place, methods, rig):
    from ertacache.bench.ours import BUILTIN, PLANNED, SELF_RECORDED
    from ertacache.comfy_erta.run import attached_task

    part = place(10).parts()[1]
    profiles = [
        attached_task(next(methods[name].propose(part)).patch(rig.model)).profile
        for name in (PLANNED, SELF_RECORDED, BUILTIN)
    ]
    assert [p.tables[0].has_error_response for p in profiles[:2]] == [True, False]
    assert [len(p.tables) for p in profiles[:2]] == [2, 1]
    assert profiles[2] is None


# The tables


def made_row(method, speed, psnr, calls=None):
    budget = round(20 / speed)
    metrics = {"psnr": psnr, "ssim": [0.9] * 2, "flip": [0.1] * 2, "latent_l1": [0.1] * 2}
    return {
        "method": method, "family": "rival", "speed": speed, "budget": budget, "setting": "x", "sampler": "euler",
        "calls": calls or [budget] * 2, "seconds": [1.0] * 2, "full_seconds": 2.0, "against": {"euler": metrics},
    }  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_column_per_speed_with_its_best_median_bold(comfy_pack):
    from ertacache.bench.tables import by_speed

    rows = [
        made_row("late", 4.0, [20.0, 30.0]),
        made_row("late", 2.0, [40.0, 30.0]),
        made_row("early", 2.0, [35.0, 34.94], calls=[10.0, 12.0]),
        {**made_row("early", 4.0, [1.0, 1.0]), "setting": ""},
    ]
    lines = by_speed(rows, ("early", "late", "absent")).splitlines()
    assert cells(lines[0]) == ["Method", "2x: 10 calls", "4x: 5 calls"]
    # 35.0 and 34.97, which prints the same, are both the best
    assert cells(lines[2]) == ["early", "**35.0** / 34.9 (11.0)", "–"]
    assert cells(lines[3]) == ["late", "**35.0** / 30.0", "**25.0** / 20.0"]
    assert len(lines) == 4


def test_a_section_says_how_far_another_seed_gets_and_what_is_missing(comfy_pack, config):
    from ertacache.bench.tables import section, settings_report

    settings = {"config": asdict(config), "prompts": 2, "tuning": 1, "profile_runs": 2, "device": "cpu", "cpus": 2}
    settings |= {"cpu": "x", "torch": "2", "comfyui": "0"}
    text = section(settings, [made_row("one", 2.0, [40.0, 30.0])], [11.0, 9.0, 12.0], ("one", "other"))
    assert "## two_experts: euler, simple, 20 steps (10 + 10 of two experts), guidance 3.5, shift 5\n" in text
    assert "Another seed: 11.0 / 9.0 dB." in text
    assert "Each stage is a run of its own" in text
    assert "no transformer blocks: other." in text
    settings["config"]["boundary"] = 0
    alone = section(settings, [made_row("one", 2.0, [40.0, 30.0])], [11.0], ("one",))
    assert "Each stage" not in alone and "transformer blocks" not in alone
    report = settings_report(settings, [text, alone])
    assert report.startswith("# Settings\n") and report.index(text) < report.index(alone)


def test_another_seed_shares_the_prompt_alone(rig, full, tmp_path):
    from ertacache.bench.kept import Kept
    from ertacache.bench.measure import other_seed
    from ertacache.bench.quality import MOST_DB
    from ertacache.bench.reference import References

    for job, other in zip(rig.test, rig.reseeded, strict=True):
        assert torch.equal(job.positive[0][0], other.positive[0][0]) and job.seed != other.seed
    found = other_seed(rig, References(rig, Kept(tmp_path, "test")))
    assert len(found) == 2 and all(0.0 < value < MOST_DB for value in found)


def test_settings_are_measured_once_and_written_after_each(rig, config, monkeypatch, tmp_path):
    from ertacache.bench import command, settings

    monkeypatch.setattr(command, "OUTPUT", tmp_path)
    monkeypatch.setattr(command, "model_file", lambda config: command.ROOT / "pyproject.toml")
    monkeypatch.setattr(settings, "Rig", lambda config, prompts: replace_config(rig, config, prompts))
    monkeypatch.setattr(settings, "METHODS", ("fewer steps", "GeoShrink"))
    configs = [config, replace(config, name="second", boundary=0, steps=8)]
    output = tmp_path / "settings.md"
    lengths = [len(output.read_text().split("\n## ")) for _ in settings.written(configs, 1, (2.0,), output)]
    assert lengths == [2, 3]
    first = output.read_text()
    monkeypatch.setattr(command.measure, "row", None)
    list(settings.written(configs, 1, (2.0,), output))
    assert output.read_text() == first


def replace_config(rig, config, prompts):
    from ertacache.bench.rig import Rig

    return Rig(config, prompts, rig.subject, rig.model)
