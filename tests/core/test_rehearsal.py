"""Rehearsal: what it measures of models whose answer to errors is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ertacache.erta.plan import Plan, Wish
from ertacache.erta.planner import euler_response, make_plan
from ertacache.erta.profile import Table
from ertacache.erta.recorder import Recorder
from ertacache.erta.rehearsal import Rehearsal

COUNT, SIZE = 12, 4000
SCHEDULE = 8.0 * np.linspace(1.0, 0.0, COUNT + 1) / (1.0 + 7.0 * np.linspace(1.0, 0.0, COUNT + 1))
RESPONSE = euler_response(SCHEDULE)
PLAN = make_plan(SCHEDULE, euler_response, None, Wish(2.0, mode="paper", predictor="hold"))


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


def rehearsed(gain: float, across: float, plan: Plan = PLAN) -> Table:
    """A run of a model that answers F(x) = F + gain (x - X) + across |x - X| n, with n a new unit vector each time."""
    tables, kept = recorded()
    rehearsal = Rehearsal(plan, RESPONSE, kept)
    generator = torch.Generator().manual_seed(2)
    off = torch.zeros(SIZE, dtype=torch.float64)
    for i, feature in enumerate(RECORDED):
        used = rehearsal.predict(i, "guided")
        if used is None:
            new = torch.randn(SIZE, generator=generator, dtype=torch.float64)
            new -= off * (off @ new) / max(float(off @ off), 1e-30)
            answer = gain * off + across * off.norm() * new / new.norm()
            used = rehearsal.observe(i, "guided", feature.double() + answer)
        off = off + (SCHEDULE[i + 1] - SCHEDULE[i]) * (used.double() - feature.double())
    (table,) = rehearsal.answered(tables)
    return table


def test_gain_along_the_error_is_found() -> None:
    table = rehearsed(-0.7, 0.0)
    np.testing.assert_allclose(table.gain, -0.7, rtol=1e-3)
    np.testing.assert_allclose(table.spread, 0.0, atol=0.02)


def test_spread_across_the_error_is_found() -> None:
    table = rehearsed(0.4, 1.5)
    np.testing.assert_allclose(table.gain, 0.4, rtol=1e-3)
    np.testing.assert_allclose(table.spread, 1.5, rtol=1e-3)
    assert table.answered


def test_a_model_that_does_not_answer_is_told_apart_from_one_that_was_not_asked() -> None:
    """Rounding always leaves a spread next to nothing; where nothing was off, the table is left as it was."""
    assert np.abs(rehearsed(0.0, 0.0).gain).max() < 1e-4
    everything = make_plan(SCHEDULE, euler_response, None, Wish(1.0))
    table = rehearsed(0.4, 1.5, everything)
    assert not table.answered
    assert not table.gain.any()


def test_only_computed_evaluations_tell_and_those_between_are_interpolated() -> None:
    tables, kept = recorded()
    rehearsal = Rehearsal(PLAN, RESPONSE, kept)
    off = torch.zeros(SIZE)
    told = {}
    for i, feature in enumerate(RECORDED):
        used = rehearsal.predict(i, "guided")
        if used is None:
            used = rehearsal.observe(i, "guided", feature + i * off)
            if off.any():
                told[i] = float(i)
        off = off + float(SCHEDULE[i + 1] - SCHEDULE[i]) * (used - feature)
    (table,) = rehearsal.answered(tables)
    assert len(told) >= 4
    np.testing.assert_allclose(table.gain, np.interp(np.arange(COUNT), list(told), list(told.values())), rtol=1e-3)


def test_it_renders_what_the_plan_alone_would() -> None:
    _, kept = recorded()
    rehearsal = Rehearsal(PLAN, RESPONSE, kept)
    newest = RECORDED[0]
    for i, feature in enumerate(RECORDED):
        used = rehearsal.predict(i, "guided")
        assert (used is None) == PLAN.compute[i]
        if used is None:
            newest = feature
            used = rehearsal.observe(i, "guided", feature)
        torch.testing.assert_close(used, newest, rtol=1e-6, atol=1e-6)
    assert rehearsal.notes == ()


def test_features_are_let_go_one_by_one_and_at_the_end() -> None:
    _, kept = recorded()
    rehearsal = Rehearsal(PLAN, RESPONSE, kept)
    for i, feature in enumerate(RECORDED[:6]):
        if rehearsal.predict(i, "guided") is None:
            rehearsal.observe(i, "guided", feature)
        assert i not in kept["guided"]
    assert len(kept["guided"]) == COUNT - 6
    rehearsal.close()
    assert rehearsal.cache_bytes == 4 * SIZE, "the most that was held at once, kept for the report"


@pytest.mark.parametrize("missing", [0, 3])
def test_a_feature_that_was_not_recorded_ends_the_measurement_there(missing: int) -> None:
    """Without it the position error is unknown from there on; the run goes on."""
    tables, kept = recorded()
    del kept["guided"][missing]
    rehearsal = Rehearsal(PLAN, RESPONSE, kept)
    for i, feature in enumerate(RECORDED):
        if rehearsal.predict(i, "guided") is None:
            rehearsal.observe(i, "guided", feature + 1.0)
    (table,) = rehearsal.answered(tables)
    assert table.answered == (missing == 3)
