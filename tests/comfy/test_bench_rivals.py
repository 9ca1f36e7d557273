"""The bench's rivals of 2026: each follows its own rule, spends what it is asked for, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ertacache.tests.comfy.wordless import rigs

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12
C, R = True, False


@pytest.fixture(scope="module")
def make_rig(comfy_pack, wan):
    from ertacache.bench.config import read_config

    tiny = replace(read_config("tiny_wan"), steps=STEPS, guidance=3.0, profile_runs=1, tuning_prompts=1)
    return rigs(wan, tiny, prompts=1)


@pytest.fixture(scope="module")
def rig(make_rig):
    return make_rig()


@pytest.fixture(scope="module")
def full(rig):
    return rig.sample(rig.model, rig.test[0])


@pytest.fixture(scope="module")
def place(rig):
    from ertacache.bench.methods import Place

    return lambda budget: Place(rig, SimpleNamespace(), budget)


@pytest.fixture
def methods(comfy_pack):
    from ertacache.bench.rivals import rivals

    return {method.name: method for method in rivals(())}


def careful(name):
    """The rival's patch at a setting that skips nothing."""
    from ertacache.bench import fsampler, geoshrink, seacache

    return {
        "SeaCache": partial(seacache.filtered, threshold=0.0, first=1, last=1),
        "FSampler": partial(fsampler.skip, skips=fsampler.Skips("denoised")),
        "FSampler, indices": partial(fsampler.skip, skips=fsampler.Skips("epsilon", 3, (C,) * STEPS)),
        "GeoShrink": partial(geoshrink.shrink, compute=geoshrink.anchors(STEPS, STEPS)),
    }[name]


def bold(name):
    """The rival's patch at a setting that skips, and how many model calls it then computes."""
    from ertacache.bench import fsampler, geoshrink, seacache

    schedule = (C, C, C, R, R, C, R, C, R, R, R, C)
    return {
        "SeaCache": (partial(seacache.filtered, threshold=1e9, first=2, last=1), 3),
        # Both ends, two each, and two that come regularly.
        "FSampler": (partial(fsampler.skip, skips=fsampler.Skips("denoised", tolerance=1e9)), 6),
        "FSampler, indices": (partial(fsampler.skip, skips=fsampler.Skips("epsilon", 3, schedule)), 6),
        "GeoShrink": (partial(geoshrink.shrink, compute=schedule), 6),
    }[name]


NAMES = ("SeaCache", "FSampler", "FSampler, indices", "GeoShrink")


def error(sample, reference):
    return float((sample.latent - reference.latent).norm() / reference.latent.norm())


def trace(model):
    """Whatever a rival could leave on a model."""
    stack = model.model.diffusion_model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in stack.modules()]
    return repr(model.model_options), sorted(vars(stack)), sum(hooks), sorted(model.attachments)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_skip_the_run_is_the_full_one(rig, full, name):
    found = rig.sample(careful(name)(rig.model), rig.test[0])
    assert found.calls == STEPS
    assert torch.equal(found.latent, full.latent)


@pytest.mark.parametrize("name", NAMES)
def test_skips_are_counted_at_the_model_and_leave_no_trace(rig, full, name):
    patch, computed = bold(name)
    before = trace(rig.model)
    patched = patch(rig.model)
    own = trace(patched)
    first, second = (rig.sample(patched, rig.test[0]) for _ in range(2))
    assert first.calls == second.calls == computed
    assert torch.equal(first.latent, second.latent), "nothing of a run reaches the next"
    assert 0.0 < error(first, full) < 1.0
    assert trace(rig.model) == before
    assert trace(patched) == own
    assert torch.equal(rig.sample(rig.model, rig.test[0]).latent, full.latent)


@pytest.mark.parametrize("name", NAMES)
def test_conds_in_separate_calls_give_the_same(rig, name):
    patch, computed = bold(name)
    together = rig.sample(patch(rig.model), rig.test[0])
    memory = rig.model.model.memory_required
    rig.model.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        apart = rig.sample(patch(rig.model), rig.test[0])
    finally:
        rig.model.model.memory_required = memory
    assert apart.calls == together.calls == computed
    assert error(apart, together) < 1e-4


@pytest.mark.parametrize("budget", [9, 6])
@pytest.mark.parametrize("name", ["SeaCache", "FSampler", "GeoShrink"])
def test_a_tuned_setting_spends_about_the_budget(rig, place, methods, name, budget, tmp_path):
    from ertacache.bench.kept import Kept
    from ertacache.bench.reference import References
    from ertacache.bench.tuning import attempt, tuned

    references = References(rig, Kept(tmp_path, "test"))
    memory = {}
    setting = tuned(methods[name], place(budget), references, memory)
    calls = attempt(setting, place(budget), references).calls
    assert budget - 1 <= calls <= budget
    assert len(memory) <= methods[name].effort


def test_labels_of_different_budgets_mean_different_schedules(place, methods):
    """Trials are remembered by label, whatever the budget was."""
    for name in ("GeoShrink", "published lists, stretched"):
        labels = [{s.label for s in methods[name].propose(place(budget))} for budget in (5, 10)]
        assert not labels[0] & labels[1], name


def test_a_schedule_of_another_length_is_refused(rig):
    from ertacache.bench.geoshrink import shrink

    with pytest.raises(ValueError, match="schedule of 5 model calls for a run of 12"):
        rig.sample(shrink(rig.model, (C,) * 5), rig.test[0])
    with pytest.raises(ValueError, match="three computed"):
        shrink(rig.model, (C, R, C, C))


def test_spread_keeps_the_start_and_the_end(comfy_pack):
    from ertacache.bench.online import spread

    assert spread(9, 5, 3) == (C, C, C, R, R, C, R, R, C)
    assert spread(9, 3, 3) == (C, C, C, R, R, R, R, R, R)
    assert all(sum(spread(50, n, first)) == n for first in (2, 3, 4) for n in range(first, 51))


def test_a_threshold_is_halved_towards_the_budget(comfy_pack):
    from ertacache.bench.methods import Setting, Trial
    from ertacache.bench.online import HALVINGS, halved

    search = halved(SimpleNamespace(budget=20), 0.01, 1.0, lambda threshold: Setting(str(threshold)))
    tried, setting = [], next(search)
    with pytest.raises(StopIteration):
        while True:
            tried.append(float(setting.label))
            setting = search.send(Trial(setting, 1.0 / tried[-1], 0.0))  # 20 calls at 0.05
    assert tried[0] == pytest.approx(0.1)
    assert len(tried) == HALVINGS
    assert tried[-1] == pytest.approx(0.05, rel=0.05)


def test_a_guider_has_its_own_options_again(rig):
    """Also where another wrapper goes on with them after the run."""
    from ertacache.bench.geoshrink import shrink

    seen = []

    def around(executor, *args, **kwargs):
        guider = executor.class_obj
        before = guider.model_options
        result = executor(*args, **kwargs)
        seen.append(guider.model_options is before)
        return result

    watched = rig.model.clone()
    watched.add_wrapper_with_key("outer_sample", "around", around)
    rig.sample(shrink(watched, (C,) * STEPS), rig.test[0])
    assert seen == [True]


# GeoShrink


def test_geoshrink_places_its_anchors_geometrically(comfy_pack):
    from ertacache.bench.geoshrink import anchors

    # 1 + 1 + 2 + 4 = 8 steps, 1 + 1 + 2 + 4 + 8 = 16
    assert [i for i, c in enumerate(anchors(9, 5)) if c] == [0, 1, 2, 4, 8]
    assert [i for i, c in enumerate(anchors(17, 6)) if c] == [0, 1, 2, 4, 8, 16]
    for count, budget in ((50, 25), (50, 17), (50, 4), (20, 10), (12, 12), (30, 29)):
        found = np.flatnonzero(anchors(count, budget))
        assert len(found) == budget
        assert (found[0], found[-1]) == (0, count - 1)
        # Distances grow, but for the rounding.
        assert (np.diff(found, 2) >= -1).all()


def test_geoshrink_shrinks_with_the_turn_and_the_horizon(comfy_pack):
    from ertacache.bench.geoshrink import horizon, retained

    # From sigma .6 to the middle between .5 and .3 it is .2, twice the .1 between .7 and .6.
    assert horizon(0.5, 0.3, 0.6, 0.7) == pytest.approx(2.0)
    along, across, slanted = torch.tensor([3.0, 0.0]), torch.tensor([0.0, -2.0]), torch.tensor([1.0, 1.0])
    assert float(retained(along, 0.5 * along, 2.0)) == pytest.approx(1.0)
    assert float(retained(along, -along, 2.0)) == pytest.approx(1.0)
    assert float(retained(along, across, 2.0)) == pytest.approx(1.0 / 5.0)
    assert float(retained(along, slanted, 2.0)) == pytest.approx(1.0 / 3.0)
    assert float(retained(along, torch.zeros(2), 1.0)) == pytest.approx(0.5)


def test_geoshrink_by_hand(comfy_pack):
    from ertacache.bench.geoshrink import Shrinking

    grid = (1.0, 0.9, 0.8, 0.7, 0.5)
    rule = Shrinking((C, C, C, R), grid)
    x = torch.tensor([[10.0, 20.0]])
    for i, velocity in enumerate(([1.0, 1.0], [2.0, 1.0], [2.0, 3.0])):
        assert rule.predict(i, x) is None
        rule.observe(i, x, x - grid[i] * torch.tensor([velocity]))
    # Changes (0, 2) and (1, 0) stand at a right angle, rho = (.7 + .5 - 1.6) / (2 * -.1) = 2: a fifth of (0, 2).
    assert torch.allclose(rule.predict(3, x), x - 0.7 * torch.tensor([[2.0, 3.4]]))


# FSampler


def test_fsampler_patterns(comfy_pack):
    from ertacache.bench.fsampler import pattern, schedules

    # Two computed, then K calls and one skip; the last two are computed.
    assert pattern(12, 2, 2) == (C, C, C, C, R, C, C, R, C, C, C, C)
    assert pattern(12, 3, 3) == (C, C, C, C, C, C, R, C, C, C, C, C)
    found = {name: compute for name, _, compute in schedules(50, 36)}
    assert set(found) == {"h2/s2", "14 indices, h2", "14 indices, h3", "14 indices, h4"}
    assert all(35 <= sum(compute) <= 36 for compute in found.values())


def test_fsampler_extrapolates_a_polynomial_in_sigma_exactly(comfy_pack):
    from ertacache.bench.fsampler import Skipping, Skips, lagrange

    assert lagrange([1.0, 2.0], 3.0) == pytest.approx([-1.0, 2.0])
    assert lagrange([3.0, 2.0, 1.0], 0.0) == pytest.approx([1.0, -3.0, 3.0])
    grid = (1.0, 0.95, 0.8, 0.7, 0.3, 0.0)
    for order, powers in ((2, 1), (3, 2), (4, 3)):
        denoised = lambda sigma, powers=powers: torch.tensor([[1.0 + sigma - 2.0 * sigma**powers]])  # noqa: E731
        for quantity in ("denoised", "epsilon"):
            rule = Skipping(Skips(quantity, order, (C, C, C, C, R)), grid)
            # The latent moves as well: epsilon is to be added to the one at hand.
            latent = [torch.tensor([[3.0 * sigma]]) for sigma in grid]
            for i in range(4):
                assert rule.predict(i, latent[i]) is None
                rule.observe(i, latent[i], denoised(grid[i]))
            assert torch.allclose(rule.predict(4, latent[4]), denoised(0.3), atol=1e-3), (order, quantity)


def test_fsampler_takes_a_lower_order_while_there_are_few(comfy_pack):
    from ertacache.bench.fsampler import Skipping, Skips

    rule = Skipping(Skips("denoised", 4, (C, C, R)), (3.0, 2.0, 1.0, 0.0))
    x = torch.zeros(1, 1)
    for i, value in enumerate((5.0, 3.0)):
        rule.observe(i, x, torch.tensor([[value]]))
    assert float(rule.predict(2, x)) == pytest.approx(1.0)


def adaptive(tolerance, values, count=14):
    """(computed, predictions) of the adaptive rule on a scalar model whose latent is 1 throughout."""
    from ertacache.bench.fsampler import Skipping, Skips

    grid = tuple(float(count - i) for i in range(count + 1))
    rule = Skipping(Skips("denoised", tolerance=tolerance), grid)
    x, compute = torch.ones(1, 1), []
    for i in range(count):
        predicted = rule.predict(i, x)
        compute.append(predicted is None)
        if predicted is None:
            rule.observe(i, x, torch.tensor([[values(i)]]))
    return tuple(compute)


def test_fsampler_skips_where_two_orders_agree(comfy_pack):
    # On a line they do: all but both ends, the regular ones (2, 6, 10) and those before three are known.
    assert adaptive(1e-6, lambda i: 1.0 + 0.1 * i) == (C, C, C, R, R, R, C, R, R, R, C, R, C, C)
    assert adaptive(0.0, lambda i: 1.0 + 0.1 * i * i) == (C,) * 14
    # On i^2, h3 and h2 differ at i = 3 by 2, times the share 1/11 of the step from sigma 11 to 10, over
    # 1 + (9 - 1) / 11: .1053.
    assert adaptive(0.104, lambda i: float(i * i))[3]
    assert not adaptive(0.107, lambda i: float(i * i))[3]


# SeaCache


def test_seacache_filter_is_wieners(comfy_pack):
    from ertacache.bench.seacache import gain, wiener

    # a = b = 1/2: S / 2 over (S + 1) / 4 = 2 / (1 + f^3), with f = 0, 1/4, 1/2, 1/4
    eighth, fourth = 2.0 / (1.0 + 1.0 / 8.0), 2.0 / (1.0 + 1.0 / 64.0)
    assert gain(4, 0.5).tolist() == pytest.approx([2.0, fourth, eighth, fourth])
    mean = (2.0 + 2.0 * fourth + eighth) / 4.0
    # A constant and the fastest wave along the rows, one channel.
    wave = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 4, 1, 1)
    assert torch.allclose(wiener(torch.ones(1, 1, 4, 1, 1), 0.5), torch.full((1, 1, 4, 1, 1), 2.0 / mean))
    assert torch.allclose(wiener(wave, 0.5), wave * eighth / mean, atol=1e-6)
    # Nearly pure noise: only what is constant passes; nearly clean: all passes as it is.
    noise = torch.randn(1, 3, 4, 4, 2, generator=torch.Generator().manual_seed(1))
    blurred = wiener(noise, 1.0)
    assert torch.allclose(blurred, noise.mean(dim=(1, 2, 3), keepdim=True) * 48.0, rtol=1e-3, atol=1e-3)
    assert torch.allclose(wiener(noise, 0.0), noise, atol=1e-4)


def test_seacache_sums_up_every_change(comfy_pack):
    from ertacache.bench.seacache import Sums

    def walk(threshold, first, last, values):
        sums = Sums(threshold, first, last, len(values))
        return tuple(sums.computes(i, torch.tensor([value])) for i, value in enumerate(values))

    # Each changes by a tenth: .1 | .2 | .3 is computed, and the sum starts again.
    values = [1.1**i for i in range(9)]
    assert walk(0.25, 1, 1, values) == (C, R, R, C, R, R, C, R, C)
    # The change of a protected call adds nothing.
    assert walk(0.25, 3, 0, values) == (C, C, C, R, R, C, R, R, C)
    assert walk(0.0, 0, 0, values) == (C,) * 9
    # There and back again is far: changes do not cancel.
    assert walk(0.45, 1, 0, [1.0, 1.2, 1.0, 1.2, 1.0]) == (C, R, R, C, R)


def test_seacache_sees_what_the_first_block_attends_to(rig):
    from ertacache.bench.seacache import modulated

    block, seen = rig.model.model.diffusion_model.blocks[0], []
    patched = rig.model.clone()

    def compare(arguments, extra):
        seen.append(modulated(block, arguments["img"], arguments["vec"]))
        return extra["original_block"](arguments)

    patched.set_model_patch_replace(compare, "dit", "double_block", 0)
    attended = []
    hook = block.self_attn.register_forward_pre_hook(lambda module, args: attended.append(args[0].clone()))
    try:
        rig.sample(patched, rig.test[0], steps=2)
    finally:
        hook.remove()
    assert len(seen) == len(attended) == 2
    for mine, theirs in zip(seen, attended, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
        # The prompt is not in it yet, so one cond speaks for both.
        assert torch.allclose(mine[:1], mine[1:], atol=1e-6)


def test_seacache_holds_the_residual_of_the_block_stack(rig):
    """At a threshold that is never reached it is the pack's held residual at the same schedule."""
    from ertacache.bench.following import follow
    from ertacache.bench.seacache import filtered

    mine = rig.sample(filtered(rig.model, 1e9, 2, 1), rig.test[0])
    held = rig.sample(follow(rig.model, (C, C, *(R,) * (STEPS - 3), C), "blocks"), rig.test[0])
    assert torch.allclose(mine.latent, held.latent, atol=1e-5)


# Published lists


def test_published_lists_are_stretched_to_the_run(comfy_pack):
    from ertacache.bench.published import stretched

    lists = dict(stretched(50, 25))
    assert [i for i, c in enumerate(lists["lemica_wan2.1_t2v_1.3b_25of50"]) if c][10:] == [
        10, 11, 12, 14, 16, 18, 21, 24, 29, 35, 40, 44, 47, 48, 49,
    ]  # fmt: skip
    half = dict(stretched(20, 10))
    assert half
    assert all(9 <= sum(compute) <= 10 and len(compute) == 20 for compute in half.values())
    assert len(set(half.values())) == len(half)


@pytest.mark.parametrize("name", ["published lists, stretched", "published lists, our lines"])
def test_published_lists_compute_their_steps(rig, place, methods, name):
    settings = list(methods[name].propose(place(6)))
    assert settings
    for setting in settings[:3]:
        assert 5 <= rig.sample(setting.patch(rig.model), rig.test[0]).calls <= 6


def test_published_lists_get_the_packs_lines_and_corrector(rig, place, methods):
    from ertacache.comfy_erta.presets import preset_steps
    from ertacache.comfy_erta.run import attached_task

    setting = next(methods["published lists, our lines"].propose(place(6)))
    asked = attached_task(setting.patch(rig.model)).settings
    assert (asked.predictor, asked.corrector) == ("linear", True)
    assert (asked.preset, asked.preset_steps) == preset_steps(setting.label)
    held = next(methods["published lists, stretched"].propose(place(6)))
    assert not torch.equal(*(rig.sample(s.patch(rig.model), rig.test[0]).latent for s in (setting, held)))
