"""Profiles that reach over part of a run: reach, joined parts, and what stands in for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ertacache.erta.gram import distances, is_semidefinite
from ertacache.erta.joining import filled, joined, reached
from ertacache.erta.prior import LENGTH, correlation
from ertacache.erta.problem import coverage, is_sparse
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.profile_file import from_bytes, to_bytes
from ertacache.erta.resampling import resampled
from ertacache.tests.core.made import flow, recorded

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 20, 6.0, (1, 4), "output", "1", "1")
SIGMAS = flow(20)[:-1]
WHOLE = recorded(MEASURED, SIGMAS, runs=2)
EARLY, LATE = (recorded(MEASURED, part, runs=2) for part in (SIGMAS[:10], SIGMAS[10:]))


def test_a_profile_reaches_other_step_counts_of_its_own_range() -> None:
    for steps in (15, 20, 30):
        assert reached(SIGMAS, flow(steps)[:-1]).all(), steps
    assert coverage(SIGMAS, flow(30)[:-1]) == 1.0
    assert coverage(SIGMAS, flow(50)[:-1]) == 0.0, "2.5 times as dense"


def test_parts_reach_their_part() -> None:
    early, late = reached(SIGMAS[:10], SIGMAS), reached(SIGMAS[10:], SIGMAS)
    assert early[:10].all() and late[10:].all()
    assert not early[-5:].any() and not late[:5].any()
    assert 0.4 < coverage(SIGMAS[:10], SIGMAS) < 0.8


def test_reach_does_not_depend_on_how_sigmas_are_counted() -> None:
    """The same run in a flow model and in one that counts noise over signal, of which only small sigmas are asked."""
    counted = SIGMAS[1:] / (1.0 - SIGMAS[1:])
    for part in (slice(0, 8), slice(12, None)):
        flow_reach = reached(SIGMAS[1:][part], SIGMAS[1:])
        np.testing.assert_array_equal(reached(counted[part], counted), flow_reach)


@pytest.mark.parametrize("order", [(EARLY, LATE), (LATE, EARLY)], ids=["early first", "late first"])
def test_parts_join_into_a_profile_of_the_whole_run(order: tuple[Profile, Profile]) -> None:
    whole = joined(*order)
    np.testing.assert_allclose(whole.sigmas, SIGMAS)
    assert len(whole.tables) == 2
    for table, early, late in zip(whole.tables, EARLY.tables, LATE.tables, strict=True):
        np.testing.assert_allclose(table.gram[:10, :10], early.gram, rtol=1e-9)
        np.testing.assert_allclose(table.gram[10:, 10:], late.gram, rtol=1e-9)
        np.testing.assert_array_equal(table.l1[:10, :10], early.l1)
        assert is_semidefinite(table.gram)
        across = distances(table.gram)[9, 10]
        assert across < distances(table.gram)[0, 19], "neighbours across the seam are nearer than the ends"
    assert from_bytes(to_bytes(whole)).calls == 20


def test_nothing_is_joined_that_is_there_already() -> None:
    assert joined(WHOLE, LATE) is WHOLE


def test_features_like_the_priors_are_joined_as_the_prior_has_them() -> None:
    gram = 7.0 * correlation(SIGMAS, LENGTH)

    def part(calls: slice) -> Profile:
        (table, *_) = (EARLY if calls.start == 0 else LATE).tables
        n = table.elements
        l1 = np.sqrt(2 / np.pi) * distances(gram[calls, calls])
        own = replace(table, gram=n * gram[calls, calls], l1=l1, mean=np.zeros(10), norm1=np.full(10, 2.0))
        return Profile(MEASURED, (own,))

    (table,) = joined(part(slice(0, 10)), part(slice(10, 20))).tables
    np.testing.assert_allclose(table.gram / table.elements, gram, atol=1e-4 * 7.0)


def test_a_run_within_reach_is_resampled_and_nothing_else() -> None:
    for steps in (20, 24):
        sigmas = flow(steps)[:-1]
        ours, theirs = filled(WHOLE, sigmas), resampled(WHOLE, sigmas)
        assert ours is not None
        np.testing.assert_array_equal(ours.tables[0].gram, theirs.tables[0].gram)


def test_beyond_its_reach_the_prior_stands_in() -> None:
    found = filled(LATE, SIGMAS)
    assert found is not None
    here = reached(LATE.sigmas, SIGMAS)
    for table, late in zip(found.tables, LATE.tables, strict=True):
        np.testing.assert_array_equal(table.sigmas, SIGMAS)
        known = resampled(LATE, SIGMAS[here]).tables[late.run].gram
        np.testing.assert_allclose(table.gram[np.ix_(here, here)], known, rtol=1e-6, atol=1e-6 * known.max())
        size = np.diag(table.gram)
        np.testing.assert_allclose(size[~here], size[here].mean(), rtol=1e-6)
        apart = distances(table.gram)
        assert (apart[~here][:, ~here][0, 1:] > 0.0).all(), "nothing is free there"
        assert is_semidefinite(table.gram)


def test_a_profile_that_reaches_less_than_two_calls_stands_for_none() -> None:
    assert filled(LATE, SIGMAS[:3]) is None


def test_density_is_counted_where_both_call_the_model() -> None:
    assert not is_sparse(SIGMAS, SIGMAS[10:])
    assert is_sparse(SIGMAS, np.linspace(SIGMAS[12], SIGMAS[-1], 40)), "img2img of many steps"


def test_parts_of_a_nested_latent_join_each_with_their_own() -> None:
    """Two runs of the early steps, one of the late ones: the second run's sound is no picture."""
    early, late = (recorded(MEASURED, part, runs, 6.0) for part, runs in ((SIGMAS[:10], 2), (SIGMAS[10:], 1)))
    whole = joined(early, late)
    assert [(table.run, table.stream) for table in whole.tables] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for table in whole.tables:
        mate = late.tables[table.stream]
        np.testing.assert_allclose(
            table.gram[10:, 10:] / table.elements, mate.gram / mate.elements, rtol=1e-9, atol=1e-12
        )
