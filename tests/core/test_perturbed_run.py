"""Perturbed run: what it measures of models whose error response is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from ertacache.erta import recorder as recorder_module
from ertacache.erta.perturbed_run import PerturbedRun
from ertacache.erta.plan import Plan
from ertacache.erta.planner import euler_response, solve
from ertacache.erta.problem import Problem
from ertacache.erta.profile import Table
from ertacache.erta.recorder import Recorder
from ertacache.erta.response import ImpulseResponse, probe
from ertacache.erta.settings import Settings

COUNT, SIZE = 12, 4000
SCHEDULE = 8.0 * np.linspace(1.0, 0.0, COUNT + 1) / (1.0 + 7.0 * np.linspace(1.0, 0.0, COUNT + 1))
RESPONSE = euler_response(SCHEDULE)
PLAN = solve(Problem(SCHEDULE, euler_response, None), Settings(2.0, mode="paper", predictor="hold"))


def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    start, drift, bend = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    sigmas = torch.from_numpy(SCHEDULE[:-1])[:, None]
    return (start + sigmas * drift + torch.sin(4 * sigmas) * bend).float()


RECORDED = features()


def recorded(keys: tuple[str, ...] = ("guided",)) -> tuple[tuple[Table, ...], dict[str, dict[int, torch.Tensor]]]:
    recorder = Recorder(SCHEDULE[:-1])
    for i, feature in enumerate(RECORDED):
        for key in keys:
            recorder.observe(i, key, feature)
    return recorder.tables(0, 1.0), {key: dict(enumerate(RECORDED.clone())) for key in keys}


def measured(gain: float, across: float, plan: Plan = PLAN) -> Table:
    return rendered_again(gain, across, plan)[0]


def rendered_again(gain: float, across: float, plan: Plan = PLAN) -> tuple[Table, float]:
    """(table, root mean square error of the final latent).

    Of a run of the model F(x) = F + gain (x - X) + across |x - X| n, with n a new unit vector each time.
    """
    tables, kept = recorded()
    perturbed = PerturbedRun(plan, RESPONSE, kept)
    generator = torch.Generator().manual_seed(2)
    off = torch.zeros(SIZE, dtype=torch.float64)
    for i, feature in enumerate(RECORDED):
        used = perturbed.predict(i, "guided")
        if used is None:
            new = torch.randn(SIZE, generator=generator, dtype=torch.float64)
            new -= off * (off @ new) / max(float(off @ off), 1e-30)
            change = gain * off + across * off.norm() * new / new.norm()
            used = perturbed.observe(i, "guided", feature.double() + change)
        off = off + (SCHEDULE[i + 1] - SCHEDULE[i]) * (used.double() - feature.double())
    (table,) = perturbed.with_error_response(tables)
    return table, float(off.square().mean().sqrt())


def push(perturbed: PerturbedRun, key: str) -> None:
    """A run in which each computed output is 1 higher than recorded."""
    for i, feature in enumerate(RECORDED):
        if perturbed.predict(i, key) is None:
            perturbed.observe(i, key, feature + 1.0)


def test_calibration_is_the_run_s_own_error_over_the_predicted_one() -> None:
    """Of a model with a gain the prediction is exact, but for its saturation."""
    table, error = rendered_again(-0.7, 0.0)
    assert error > 0.05
    assert table.calibration == pytest.approx(np.sqrt(1.0 + error**2), rel=2e-3)


def test_where_changes_cancel_that_were_taken_to_add_up_the_calibration_says_so() -> None:
    """Each change across the error is new, and the prediction takes those of one error for alike."""
    table, error = rendered_again(0.0, 4.0)
    assert 0.5 < table.calibration < 0.97 * np.sqrt(1.0 + error**2)


def test_a_table_that_was_not_rendered_again_is_not_calibrated() -> None:
    tables, kept = recorded()
    (table,) = PerturbedRun(PLAN, RESPONSE, kept).with_error_response(tables)
    assert table.calibration == 1.0


def test_gain_along_the_error_is_found() -> None:
    table = measured(-0.7, 0.0)
    np.testing.assert_allclose(table.gain, -0.7, rtol=1e-3)
    np.testing.assert_allclose(table.deviation, 0.0, atol=0.02)


def test_deviation_across_the_error_is_found() -> None:
    table = measured(0.4, 1.5)
    np.testing.assert_allclose(table.gain, 0.4, rtol=1e-3)
    np.testing.assert_allclose(table.deviation, 1.5, rtol=1e-3)
    assert table.has_error_response


def test_a_model_that_ignores_errors_differs_from_one_that_was_not_measured() -> None:
    """Rounding always leaves a small deviation; where nothing was off, the table is left as it was."""
    assert np.abs(measured(0.0, 0.0).gain).max() < 1e-4
    everything = solve(Problem(SCHEDULE, euler_response, None), Settings(1.0))
    table = measured(0.4, 1.5, everything)
    assert not table.has_error_response
    assert not table.gain.any()


def test_a_feature_of_another_shape_than_the_recorded_ends_the_measuring_and_nothing_else() -> None:
    tables, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    for i, feature in enumerate(RECORDED):
        if perturbed.predict(i, "guided") is None:
            perturbed.observe(i, "guided", feature[:-1] if i == 3 else feature + 1.0)
    (table,) = perturbed.with_error_response(tables)
    assert table.deviation.size == tables[0].deviation.size


def test_only_computed_calls_are_measured_and_those_between_are_interpolated() -> None:
    tables, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    off = torch.zeros(SIZE)
    measured_at = {}
    for i, feature in enumerate(RECORDED):
        used = perturbed.predict(i, "guided")
        if used is None:
            used = perturbed.observe(i, "guided", feature + i * off)
            if off.any():
                measured_at[i] = float(i)
        off = off + float(SCHEDULE[i + 1] - SCHEDULE[i]) * (used - feature)
    (table,) = perturbed.with_error_response(tables)
    assert len(measured_at) >= 4
    np.testing.assert_allclose(
        table.gain, np.interp(np.arange(COUNT), list(measured_at), list(measured_at.values())), rtol=1e-3
    )


def test_it_renders_what_the_plan_alone_would() -> None:
    _, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    newest = RECORDED[0]
    for i, feature in enumerate(RECORDED):
        used = perturbed.predict(i, "guided")
        assert (used is None) == PLAN.compute[i]
        if used is None:
            newest = feature
            used = perturbed.observe(i, "guided", feature)
        torch.testing.assert_close(used, newest, rtol=1e-6, atol=1e-6)
    assert perturbed.notes == ()


def test_features_are_let_go_one_by_one_and_at_the_end() -> None:
    _, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    for i, feature in enumerate(RECORDED[:6]):
        if perturbed.predict(i, "guided") is None:
            perturbed.observe(i, "guided", feature)
        assert i not in kept["guided"]
    assert len(kept["guided"]) == COUNT - 6
    perturbed.close()
    assert perturbed.cache_bytes == 4 * SIZE, "the most that was held at once, kept for the report"


@pytest.mark.parametrize("missing", [0, 3])
def test_a_feature_that_was_not_recorded_ends_the_measurement_there(missing: int) -> None:
    """Without it the position error is unknown from there on; the run goes on."""
    tables, kept = recorded()
    del kept["guided"][missing]
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    push(perturbed, "guided")
    (table,) = perturbed.with_error_response(tables)
    assert table.has_error_response == (missing == 3)


# Runs that are really stepped: two latents in float64, where the code under test only knows the sampler's response

Tensor = torch.Tensor
Derive = Callable[[Tensor, float], Tensor]
Sampler = Callable[[Derive, Tensor], Tensor]


def steps() -> list[tuple[float, float]]:
    return list(zip(SCHEDULE[:-1].tolist(), SCHEDULE[1:].tolist(), strict=True))


def euler(derive: Derive, x: Tensor) -> Tensor:
    for now, then in steps():
        x = x + (then - now) * derive(x, now)
    return x


def heun(derive: Derive, x: Tensor) -> Tensor:
    for now, then in steps():
        d = derive(x, now)
        if then > 0.0:
            d = (d + derive(x + (then - now) * d, then)) / 2
        x = x + (then - now) * d
    return x


def two_step(derive: Derive, x: Tensor) -> Tensor:
    before = None
    for now, then in steps():
        d = derive(x, now)
        x = x + (then - now) * (d if before is None else 1.5 * d - 0.5 * before)
        before = d
    return x


def response_of(sampler: Sampler) -> ImpulseResponse:
    return probe(lambda denoise, x: sampler(lambda x, sigma: (x - denoise(x, torch.tensor([sigma]))) / sigma, x))


class Responding:
    """A model of known error responses at some streams, recorded once and then run again with a plan.

    responses: per stream gain and deviation, (M,) each. The recorded features are a curve in sigma and
    another in the model call.
    """

    def __init__(
        self, sampler: Sampler, responses: dict[str, tuple[np.ndarray, np.ndarray]], shape: tuple[int, ...] = (SIZE,)
    ) -> None:
        self.sampler, self.responses, self.shape = sampler, responses, shape
        self.response = response_of(sampler)
        generator = torch.Generator().manual_seed(3)
        self.parts = torch.randn(len(responses), 3, *shape, generator=generator, dtype=torch.float64)
        self.noise = torch.Generator().manual_seed(4)
        self.recorder = Recorder(self.response.sigmas)
        self.positions: dict[str, list[Tensor]] = {}
        self.off_at: dict[str, list[int]] = {key: [] for key in responses}
        for key in responses:
            self.positions[key] = []
            sampler(lambda x, sigma, key=key: self.record(key, x, sigma), torch.zeros(shape, dtype=torch.float64))

    def feature(self, key: str, i: int, sigma: float) -> Tensor:
        start, drift, bend = self.parts[list(self.responses).index(key)]
        return start + sigma * drift + float(np.sin(4 * sigma + 0.1 * i)) * bend

    def record(self, key: str, x: Tensor, sigma: float) -> Tensor:
        i = len(self.positions[key])
        self.positions[key].append(x)
        return self.recorder.observe(i, key, self.feature(key, i, sigma))

    def compute(self, key: str, i: int, x: Tensor, sigma: float) -> Tensor:
        gain, deviation = (values[i] for values in self.responses[key])
        off = x - self.positions[key][i]
        size = torch.linalg.vector_norm(off)
        if not size > 0.0:
            return self.feature(key, i, sigma)
        self.off_at[key].append(i)
        new = torch.randn(self.shape, generator=self.noise, dtype=torch.float64)
        new -= off * ((off * new).sum() / size**2)
        return self.feature(key, i, sigma) + gain * off + deviation * size * new / torch.linalg.vector_norm(new)

    def plan(self) -> Plan:
        # As comfy_erta.measuring makes it.
        return solve(
            Problem(SCHEDULE, lambda schedule: self.response, None), Settings(2.0, mode="paper", predictor="hold")
        )

    def run_again(self, plan: Plan) -> tuple[Table, ...]:
        tables = self.recorder.tables(0, 1.0)
        perturbed = PerturbedRun(plan, self.response, self.recorder.features)
        for key in self.responses:
            calls = iter(range(self.response.calls))

            def derive(x: Tensor, sigma: float, key: str = key, calls: Iterator[int] = calls) -> Tensor:
                i = next(calls)
                used = perturbed.predict(i, key)
                return perturbed.observe(i, key, self.compute(key, i, x, sigma)) if used is None else used.double()

            self.sampler(derive, torch.zeros(self.shape, dtype=torch.float64))
        return perturbed.with_error_response(tables)


def curves(count: int, phase: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Another gain of either sign and another deviation at each model call."""
    places = np.arange(count)
    return 1.5 * np.cos(1.0 + 0.7 * places + phase), 1.2 + np.sin(2.0 * places + phase)


def assert_found(table: Table, response: tuple[np.ndarray, np.ndarray], off_at: list[int]) -> None:
    gain, deviation = response
    np.testing.assert_allclose(table.gain[off_at], gain[off_at], atol=1e-4)
    np.testing.assert_allclose(table.deviation[off_at], deviation[off_at], atol=1e-4)


SAMPLERS: list[Sampler] = [euler, heun, two_step]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gain_and_deviation_of_every_computed_call_are_found_whatever_the_sampler(sampler: Sampler) -> None:
    response = curves(response_of(sampler).calls)
    model = Responding(sampler, {"guided": response})
    plan = model.plan()
    (table,) = model.run_again(plan)
    off_at = model.off_at["guided"]
    assert len(off_at) >= 4
    assert off_at == [i for i, computed in enumerate(plan.compute) if computed and not all(plan.compute[:i])]
    assert_found(table, response, off_at)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gain_alone_leaves_no_deviation_and_deviation_alone_no_gain(sampler: Sampler) -> None:
    gain, deviation = curves(response_of(sampler).calls)
    for response in ((gain, 0 * deviation), (0 * gain, deviation)):
        model = Responding(sampler, {"guided": response})
        (table,) = model.run_again(model.plan())
        off_at = model.off_at["guided"]
        assert len(off_at) >= 4
        np.testing.assert_allclose(table.gain[off_at], response[0][off_at], atol=1e-4)
        # The rounding of float32, in which features are kept, is a deviation of its own.
        np.testing.assert_allclose(table.deviation[off_at], response[1][off_at], atol=1e-3)


def test_the_error_of_the_latent_is_that_of_what_the_sampler_was_handed() -> None:
    """A correction moves the latent as well: without it the error would be another, and with it the gain."""
    response = curves(COUNT)
    model = Responding(euler, {"guided": response})
    plan = model.plan()
    ends = [i > 0 and plan.compute[i] and not plan.compute[i - 1] for i in range(COUNT)]
    assert sum(ends) >= 4
    corrected = replace(
        plan,
        corrections=tuple(0.7 if end else 0.0 for end in ends),
        coefficients=tuple((1.0,) if end else row for end, row in zip(ends, plan.coefficients, strict=True)),
    )
    (table,) = model.run_again(corrected)
    assert_found(table, response, model.off_at["guided"])


def test_each_stream_gets_its_own_error_response_in_the_order_of_the_tables() -> None:
    responses = {"uncond": curves(COUNT), "cond": curves(COUNT, phase=2.0)}
    model = Responding(euler, responses)
    plan = model.plan()
    tables = model.run_again(plan)
    assert [table.stream for table in tables] == [0, 1]
    for table, (key, response) in zip(tables, responses.items(), strict=True):
        assert_found(table, response, model.off_at[key])
    between = [i for i in range(COUNT) if i not in model.off_at["cond"]]
    places = model.off_at["cond"]
    np.testing.assert_allclose(tables[1].deviation[between], np.interp(between, places, tables[1].deviation[places]))


def test_a_stream_that_was_not_rendered_again_leaves_its_table_alone() -> None:
    tables, kept = recorded(("cond", "uncond"))
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    push(perturbed, "uncond")
    cond, uncond = perturbed.with_error_response(tables)
    assert cond is tables[0]
    assert uncond.has_error_response


def test_all_but_the_error_response_is_left_as_it_was_recorded() -> None:
    (before,), _ = recorded()
    after = measured(0.4, 1.5)
    for name in ("run", "stream", "elements", "latent_rms"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("sigmas", "gram", "l1", "norm1", "mean"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_tables_of_another_number_of_streams_are_refused() -> None:
    tables, _ = recorded(("cond", "uncond"))
    _, kept = recorded()
    with pytest.raises(ValueError, match=r"shorter|longer"):
        PerturbedRun(PLAN, RESPONSE, kept).with_error_response(tables)


def test_a_batch_of_any_shape_is_one_list_of_numbers() -> None:
    response = curves(COUNT)
    model = Responding(euler, {"guided": response}, shape=(2, 3, 5, 7, 11))
    (table,) = model.run_again(model.plan())
    assert table.elements == 2 * 3 * 5 * 7 * 11
    assert_found(table, response, model.off_at["guided"])


def test_a_large_latent_is_measured_on_the_sample_that_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 9th element gives the same up to chance: 1 / sqrt(number) of elements."""
    monkeypatch.setattr(recorder_module, "SAMPLE", 10_000)
    gain, deviation = curves(COUNT)
    model = Responding(euler, {"guided": (gain, deviation)}, shape=(90_000,))
    (table,) = model.run_again(model.plan())
    off_at = model.off_at["guided"]
    assert table.elements == 10_000
    np.testing.assert_allclose(table.gain[off_at], gain[off_at], atol=0.1)
    np.testing.assert_allclose(table.deviation[off_at], deviation[off_at], rtol=0.05, atol=0.05)


def test_what_was_never_recorded_is_let_through() -> None:
    """Model calls after the last one, and streams that came up only now."""
    tables, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    for i in (*range(COUNT), COUNT, COUNT + 1):
        for key in ("guided", "new"):
            feature = RECORDED[min(i, COUNT - 1)] + 1.0
            used = perturbed.predict(i, key)
            assert used is None or not PLAN.compute[i]
            if used is None:
                assert perturbed.observe(i, key, feature) is feature
    (table,) = perturbed.with_error_response(tables)
    assert table.has_error_response


def test_a_closed_perturbed_run_still_has_its_error_response() -> None:
    tables, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    push(perturbed, "guided")
    (before,) = perturbed.with_error_response(tables)
    perturbed.close()
    (after,) = perturbed.with_error_response(tables)
    assert after.has_error_response
    np.testing.assert_array_equal(after.deviation, before.deviation)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measurements_that_are_no_numbers_are_left_out(value: float) -> None:
    """A model that overflows once in half precision must not cost the recording of a whole run."""
    last = max(i for i in range(COUNT) if PLAN.compute[i])
    tables, kept = recorded()
    perturbed = PerturbedRun(PLAN, RESPONSE, kept)
    for i, feature in enumerate(RECORDED):
        if perturbed.predict(i, "guided") is None:
            perturbed.observe(i, "guided", feature * (value if i == last else 1.01))
    (table,) = perturbed.with_error_response(tables)
    assert np.isfinite(table.gain).all() and np.isfinite(table.deviation).all()
