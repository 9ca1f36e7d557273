"""The bench: its rivals follow their own rules, it counts at the model, and it tunes within the budget."""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ertacache.tests.comfy.wordless import calibration_of, rigs

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, BUDGET = 10, 5
C, R = True, False


@pytest.fixture(scope="session")
def make_rig(comfy_pack, wan):
    from ertacache.bench.config import read_config

    tiny = replace(read_config("tiny_wan"), steps=STEPS, guidance=3.0, profile_runs=2, tuning_prompts=1)
    return rigs(wan, tiny, prompts=2)


@pytest.fixture(scope="session")
def rig(make_rig):
    return make_rig()


@pytest.fixture(scope="session")
def place(rig, tmp_path_factory):
    """place(budget=BUDGET): with one calibration for the whole session."""
    from ertacache.bench.methods import Place

    calibration = calibration_of(rig, tmp_path_factory.mktemp("kept"))
    return lambda budget=BUDGET: Place(rig, calibration, budget)


@pytest.fixture(scope="session")
def references(rig, tmp_path_factory):
    from ertacache.bench.kept import Kept
    from ertacache.bench.reference import References

    return References(rig, Kept(tmp_path_factory.mktemp("full"), "test"))


@pytest.fixture
def methods(comfy_pack):
    from ertacache.bench.ours import ours
    from ertacache.bench.rivals import rivals

    return {method.name: method for method in [*ours(), *rivals(("dpmpp_2m",))]}


@pytest.fixture(scope="session")
def full(rig):
    return rig.sample(rig.model, rig.test[0])


def error(result, reference):
    return float((result - reference).norm() / reference.norm())


# The rig


def test_a_full_run_is_one_call_per_step(rig, full):
    assert full.calls == STEPS
    assert rig.sample(rig.model, rig.test[0], steps=4).calls == 4
    assert rig.sample(rig.model, rig.test[0], steps=4, sampler="heun").calls == 7  # two per step but the last


def test_conds_in_separate_calls_count_the_same(rig):
    split = rig.model.clone()
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    split.add_wrapper_with_key("apply_model", "count", count)
    memory = rig.model.model.memory_required
    rig.model.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        assert rig.sample(split, rig.test[0], steps=4).calls == 4
    finally:
        rig.model.model.memory_required = memory
    assert len(calls) == 8


def test_without_guidance_one_cond_is_a_call(make_rig):
    rig = make_rig(guidance=1.0)
    assert rig.sample(rig.model, rig.test[0], steps=4).calls == 4


def test_counting_leaves_no_hook_on_the_model(rig, full):
    from ertacache.bench.rig import last_block

    assert not last_block(rig.model)._forward_hooks


def test_groups_of_prompts_do_not_overlap(rig):
    groups = [rig.test, rig.tuning, rig.profiling]
    keys = [job.key for group in groups for job in group]
    assert len(set(keys)) == len(keys)
    assert len({job.positive[0][0].sum().item() for group in groups for job in group}) == len(keys)


# Rivals at their most careful and at a skipping setting


@pytest.mark.parametrize("name", ["easycache", "lazycache"])
def test_core_caches_skip_what_they_say_and_nothing_at_threshold_zero(rig, full, name, caplog):
    from ertacache.bench import rivals

    patch = getattr(rivals, name)
    careful = rig.sample(patch(rig.model, 0.0, 0.05, 1), rig.test[0])
    assert careful.calls == STEPS
    assert error(careful.latent, full.latent) < 1e-6
    with caplog.at_level(logging.INFO):
        skipping = rig.sample(patch(rig.model, 0.5, 0.05, 1), rig.test[0])
    skipped = int(re.search(r"skipped (\d+)/", caplog.text).group(1))
    assert 0 < skipped < STEPS
    assert skipping.calls == STEPS - skipped
    assert 0.0 < error(skipping.latent, full.latent) < 0.5


def test_easycache_gets_a_copy_of_its_input(rig):
    from comfy_extras.nodes_easycache import EasyCacheNode

    from ertacache.bench.rivals import easycache

    alone = EasyCacheNode.execute(rig.model, 0.5, 0.05, 0.95, False).result[0]
    alone.model_options["transformer_options"]["easycache"].subsample_factor = 1
    spoilt, protected = (rig.sample(m, rig.test[0]) for m in (alone, easycache(rig.model, 0.5, 0.05, 1)))
    assert not torch.equal(spoilt.latent, protected.latent), "this ComfyUI's EasyCache no longer needs the copy"


@pytest.mark.parametrize("level", ["output", "blocks"])
def test_following_a_schedule_computes_just_that(rig, full, level):
    from ertacache.bench.following import follow

    everything = rig.sample(follow(rig.model, (C,) * STEPS, level), rig.test[0])
    assert torch.equal(everything.latent, full.latent)
    compute = (C, C, R, R, C, R, C, C, R, C)
    result = rig.sample(follow(rig.model, compute, level), rig.test[0])
    assert result.calls == 6
    assert 0.0 < error(result.latent, full.latent) < 0.5


def test_a_held_block_residual_is_added_to_the_current_embedding(rig):
    """By hand: a model whose blocks are frozen at model call 0's residual for the whole run."""
    from ertacache.bench.following import follow

    kept = {}

    def frozen(args, extra):
        if "residual" not in kept:
            kept["first"] = args["img"].clone()
            kept["residual"] = None
            return extra["original_block"](args)
        return extra["original_block"](args) if kept["residual"] is None else {"img": args["img"]}

    def last(args, extra):
        if kept["residual"] is None:
            out = extra["original_block"](args)
            kept["residual"] = out["img"] - kept["first"]
            return out
        return {"img": args["img"] + kept["residual"]}

    by_hand = rig.model.clone()
    by_hand.set_model_patch_replace(frozen, "dit", "double_block", 0)
    by_hand.set_model_patch_replace(last, "dit", "double_block", 1)
    expected = rig.sample(by_hand, rig.test[0])
    found = rig.sample(follow(rig.model, (C,) + (R,) * (STEPS - 1), "blocks"), rig.test[0])
    assert expected.calls == found.calls == 1
    assert error(found.latent, expected.latent) < 1e-5


def test_a_schedule_of_another_length_is_refused(rig):
    from ertacache.bench.following import follow

    with pytest.raises(ValueError, match="schedule of 4 model calls for a run of 10"):
        rig.sample(follow(rig.model, (C,) * 4, "blocks"), rig.test[0])


# Their rules, walked by hand


def test_magcache_walks_its_ratio_table(comfy_pack):
    from ertacache.bench.magnitudes import magcache_schedule

    ratios = [1.0, 0.9, 0.9, 0.95, 0.98, 0.9, 1.1, 1.0, 1.0, 1.0]
    # From model call 2 on: .10 | .10 + .145 over .2, so 3 is computed | .02 | .02 + .118 | + |1 - .9702| = .1678 |
    # the same again is .1976, but a fourth in a row is more than K | .0 | .0
    assert magcache_schedule(ratios, 0.2, 3) == (C, C, R, C, R, R, R, C, R, R)
    assert magcache_schedule(ratios, 0.2, 4) == (C, C, R, C, R, R, R, R, C, R)
    assert magcache_schedule(ratios, 0.0, 3) == (C,) * 10
    assert magcache_schedule([1.0] * 10, 1.0, 2) == (C, C, R, R, C, R, R, C, R, R)
    assert magcache_schedule([1.0] * 10, 1.0, 9, retained=0.5) == (C,) * 5 + (R,) * 5


def test_teacache_accumulates_until_its_threshold(comfy_pack):
    from ertacache.bench.embeddings import teacache_schedule

    distances = [0.0, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1]
    # .1 | .2 | .3 is not below | .3 is not | .1 | .2 | computed | .1 | the last one is protected
    assert teacache_schedule(distances, 0.25, 1, 1) == (C, R, R, C, C, R, R, C, R, C)
    # the protected start adds nothing: .1 at model call 3, then .4
    assert teacache_schedule(distances, 0.25, 3, 0) == (C, C, C, R, C, R, R, C, R, R)
    assert teacache_schedule(distances, 0.0, 1, 1) == (C,) * 10


def test_taylorseer_differences_by_hand(comfy_pack):
    from ertacache.bench.taylor import every_nth, hermite_weights, taylor_weights

    assert every_nth(8, 3, 2) == (C, C, R, R, C, R, R, C)
    features = {0: 1.0, 2: 5.0, 6: 7.0}
    # D = 4 and 2: d1 = 2 / 4, before it 4 / 2, d2 = (1/2 - 2) / 4 = -3/8; two steps on
    for order, expected in ((0, 7.0), (1, 8.0), (2, 8.0 - 0.75)):
        weights = taylor_weights((6, 2, 0), 8, order)
        assert len(weights) == order + 1
        assert sum(w * features[n] for w, n in zip(weights, (6, 2, 0), strict=False)) == pytest.approx(expected)
    # half of two steps on is 7 + 1/2, and a quarter of d2 on top
    weights = hermite_weights((6, 2, 0), 8)
    assert sum(w * features[n] for w, n in zip(weights, (6, 2, 0), strict=True)) == pytest.approx(7.5 - 0.09375)
    assert taylor_weights((6,), 8, 2) == (1.0,)
    assert taylor_weights((6, 2), 8, 2) == (1.5, -0.5)


def test_magnitude_ratios_are_those_of_the_block_residual(rig):
    from ertacache.bench.magnitudes import measure_ratios

    entered, norms = [], []
    blocks = rig.model.model.diffusion_model.blocks
    before = blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    after = blocks[-1].register_forward_hook(
        lambda module, args, out: norms.append((out - entered[-1]).norm(dim=-1).double())
    )
    try:
        rig.sample(rig.model, rig.profiling[0])
    finally:
        before.remove()
        after.remove()
    expected = [1.0, *(float((b / a).mean()) for a, b in itertools.pairwise(norms))]
    assert measure_ratios(rig, rig.profiling[0]) == pytest.approx(expected, rel=1e-4)


def test_embedding_changes_are_those_of_the_time_projection(rig):
    import comfy.ldm.wan.model as wan_model

    from ertacache.bench.embeddings import Changes, measure_changes, rescaled

    model = rig.model.model.diffusion_model
    seen = []
    watch = rig.model.clone()

    def look(executor, x, timestep, *args, **kwargs):
        seen.append(timestep[:1].clone())
        return executor(x, timestep, *args, **kwargs)

    watch.add_wrapper_with_key("diffusion_model", "look", look)
    rig.sample(watch, rig.profiling[0])
    vecs = [
        model.time_projection(model.time_embedding(wan_model.sinusoidal_embedding_1d(model.freq_dim, t.flatten())))
        for t in seen
    ]
    expected = [float(((b - a).abs().mean() / a.abs().mean()).detach()) for a, b in itertools.pairwise(vecs)]
    changes = measure_changes(rig, rig.profiling[:1])
    assert changes.embedding.shape == changes.output.shape == (2, STEPS - 1)  # of cond and uncond
    assert changes.embedding[0].tolist() == pytest.approx(expected, rel=1e-3)
    x = np.linspace(0.01, 0.5, 9)
    known = Changes(np.stack([x, x]), np.stack([1.0 + 2.0 * x**3] * 2))
    assert rescaled(known).tolist() == pytest.approx([0.0, *(1.0 + 2.0 * x**3)])


# Budgets


@pytest.mark.parametrize("budget", [2, 5, 7, 9])
def test_offline_schedules_spend_the_budget_and_no_more(comfy_pack, place, budget):
    from ertacache.bench import embeddings, magnitudes, taylor

    rng = np.random.default_rng(4)
    ratios = [1.0, *(1.0 + 0.1 * rng.standard_normal(49))]
    distances = [0.0, *rng.uniform(0.01, 0.2, 49)]
    found = [one[-1] for one in magnitudes.schedules(ratios, 5 * budget)]
    found += [one[-1] for one in embeddings.schedules(distances, 5 * budget)]
    found += [one[-1] for one in taylor.schedules(50, 5 * budget)]
    assert found
    assert all(sum(compute) <= 5 * budget for compute in found)
    assert max(map(sum, found)) == 5 * budget


def test_the_best_trial_within_the_budget_wins(comfy_pack):
    from ertacache.bench.methods import Setting, Trial
    from ertacache.bench.tuning import best

    settings = [Setting(name) for name in "abc"]
    trials = [Trial(s, e, p) for s, e, p in zip(settings, (5.0, 4.0, 5.5), (30.0, 20.0, 40.0), strict=True)]
    assert best(trials, 5) is settings[0]
    assert best(trials, 4) is settings[1]
    assert best(trials, 3) is None


@pytest.mark.parametrize("name", ["EasyCache", "TeaCache", "MagCache", "TaylorSeer 2"])
def test_a_tuned_setting_keeps_to_the_budget(place, references, methods, name, monkeypatch):
    from ertacache.bench import rivals
    from ertacache.bench.tuning import attempt, tuned

    monkeypatch.setattr(rivals, "HALVINGS", 4)
    memory = {}
    setting = tuned(methods[name], place(7), references, memory)
    assert setting is not None
    assert attempt(setting, place(7), references).calls <= 7
    assert memory[setting.label].psnr == max(t.psnr for t in memory.values() if t.calls <= 7)
    tried = len(memory)
    tuned(methods[name], place(7), references, memory)
    assert len(memory) == tried, "what was tried is not rendered again"


# Rows and what is made of them


def test_a_row_of_ours_and_of_another_sampler(place, references, methods):
    from ertacache.bench.measure import row, summary
    from ertacache.bench.ours import PLANNED

    planned = row(methods[PLANNED], place(), 2.0, references, {})
    assert planned["calls"] == [BUDGET] * 2
    assert list(planned["against"]) == ["euler"]
    other = row(methods["fewer steps, dpmpp_2m"], place(), 2.0, references, {})
    assert other["calls"] == [BUDGET] * 2
    assert list(other["against"]) == ["dpmpp_2m", "euler"]
    s = summary(other)
    assert s["psnr"] == pytest.approx(np.median(other["against"]["dpmpp_2m"]["psnr"]))
    assert s["psnr_worst"] == min(other["against"]["dpmpp_2m"]["psnr"])
    assert s["flip_worst"] == max(other["against"]["dpmpp_2m"]["flip"])


def test_each_method_without_a_search_proposes_one_setting(place, methods):
    for method in methods.values():
        if not method.tuned:
            assert len(list(method.propose(place()))) == 1, method.name


def test_published_lists_only_where_they_are_for_this_run(comfy_pack):
    from ertacache.bench.rivals import fitting_lists

    names = dict(fitting_lists(50, 25))
    assert len(names["lemica_wan2.1_t2v_1.3b_25of50"]) == 25
    assert all(len(steps) in (23, 24, 25) for steps in names.values())
    assert not dict(fitting_lists(50, 33))
    assert not dict(fitting_lists(20, 10))


def test_scores_by_hand(comfy_pack):
    from ertacache.bench.quality import MOST_DB, score

    reference = np.full((2, 16, 16, 3), 0.5, dtype=np.float32)
    same = score(reference, reference, torch.ones(4), torch.ones(4))
    assert (same.psnr, same.ssim, same.flip, same.latent_l1) == (MOST_DB, 1.0, 0.0, 0.0)
    off = score(reference + np.float32(0.1), reference, torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert off.psnr == pytest.approx(20.0, abs=1e-3)
    assert off.latent_l1 == pytest.approx(0.5)
    assert 0.0 < off.flip < 1.0
    assert off.ssim < 1.0


def test_kept_is_reused_for_the_same_digest_only(comfy_pack, tmp_path):
    from ertacache.bench.kept import Kept, digest_of, digest_of_files

    made = []
    make = lambda: made.append(1) or {"n": len(made)}  # noqa: E731
    assert Kept(tmp_path, "a").json("one row", make) == {"n": 1}
    assert Kept(tmp_path, "a").json("one row", make) == {"n": 1}
    assert Kept(tmp_path, "b").json("one row", make) == {"n": 2}
    assert Kept(tmp_path, "a").json("one row", make, fresh=True) == {"n": 3}
    file = tmp_path / "source.py"
    file.write_text("x = 1")
    before = digest_of(digest_of_files([file]))
    file.write_text("x = 2")
    assert digest_of(digest_of_files([file])) != before


def made_row(method, family, speed, values, against=("euler",)):
    metrics = {"psnr": values, "ssim": [0.9, 0.8], "flip": [0.1, 0.2], "latent_l1": [0.1, 0.1]}
    budget = round(50 / speed)
    return {
        "method": method, "family": family, "speed": speed, "budget": budget, "setting": "x", "tried": 0,
        "sampler": against[0], "calls": [budget, budget], "seconds": [1.0, 1.2], "full_seconds": 2.2,
        "against": dict.fromkeys(against, metrics),
    }  # fmt: skip


def test_tables_state_the_margin_over_the_best_rival(comfy_pack, tmp_path):
    from ertacache.bench import plots, tables
    from ertacache.bench.ours import PLANNED

    rows = [
        made_row(PLANNED, "ours", 2.0, [50.0, 40.0]),
        made_row("EasyCache", "rival", 2.0, [36.0, 20.0]),
        made_row("fewer steps, uni_pc", "rival", 2.0, [30.0, 29.0], against=("uni_pc", "euler")),
        made_row("planned, hold", "ablation", 2.0, [90.0, 90.0]),
        {**made_row("LeMiCa lists", "rival", 2.0, []), "setting": ""},
    ]
    text = tables.margins(rows)
    # 45 over 29.5 in the median, 40 over 29 in the worst case; the ablation is no rival
    assert "fewer steps, uni_pc: 29.5" in text
    assert "+15.5 / +11.0" in text
    assert tables.absent(rows) == "No setting within this budget: LeMiCa lists."
    lines = tables.table(rows, 50).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "planned, hold", f"**{PLANNED}**", "fewer steps, uni_pc", "fewer steps, uni_pc, against euler", "EasyCache",
    ]  # fmt: skip
    assert "2.00" in lines[3]
    plots.quality(rows, 50, tmp_path / "quality.png")
    plots.ablation(rows, tmp_path / "ablation.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("quality", "ablation"))


# Configs


def test_shipped_configs_and_their_prompts(comfy_pack):
    from ertacache.bench.config import CONFIGS, read_config
    from ertacache.bench.settings import SETTINGS
    from ertacache.bench.subjects import RECORDED, TUNED

    assert {file.stem for file in CONFIGS.glob("*.toml")} == {*SETTINGS, "wan2.1_1.3b"}
    assert read_config("tiny_wan").tiny
    large = read_config("wan2.1_1.3b")
    assert (large.steps, large.shift, large.guidance, large.frames, large.width, large.height) == (
        50,
        8,
        6,
        81,
        832,
        480,
    )
    assert len(set(large.prompts)) == 32 + TUNED + RECORDED


@pytest.mark.parametrize(
    ("text", "message"),
    [("stepz = 3", "unknown keys stepz"), ("steps = '3'", "steps is '3'"), ("steps =", "no TOML"), ("", "missing")],
)
def test_a_config_that_is_wrong_says_where(comfy_pack, tmp_path, text, message):
    from ertacache.bench.config import ConfigError, read_config

    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(str(file))
