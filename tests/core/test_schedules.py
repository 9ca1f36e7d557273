"""Which model calls to compute, against enumeration and by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator

import numpy as np
import pytest

from ertacache.erta.predictors import History
from ertacache.erta.schedules import (
    IntervalCosts,
    Schedule,
    budget,
    even,
    greedy,
    greedy_for_budget,
    histories,
    longest_interval,
    possible_intervals,
    preset,
    relative_l1,
)


def places(schedule: Schedule) -> list[int]:
    return [i for i, computed in enumerate(schedule) if computed]


# Even and preset


def test_even_computes_both_ends_and_as_many_as_asked() -> None:
    for count, computed in itertools.product(range(2, 60), repeat=2):
        if 2 <= computed <= count:
            found = places(even(count, computed))
            assert len(found) == computed
            assert (found[0], found[-1]) == (0, count - 1)
            intervals = np.diff(found)
            assert intervals.max() - intervals.min() <= 1, (count, computed)


def test_even_by_hand() -> None:
    assert places(even(10, 4)) == [0, 3, 6, 9]
    assert places(even(10, 4, required=(1, 7))) == [0, 1, 3, 6, 7, 9]
    assert places(even(5, 1)) == [0]


def test_preset_is_taken_as_published_and_stretched_by_position() -> None:
    assert places(preset([0, 1, 2, 5, 9], 10, 10)) == [0, 1, 2, 5, 9]
    # Twice as long a run: position 9 of 9 is 19 of 19; 1 of 9 is 2.1, 2 of 9 is 4.2, 5 of 9 is 10.6.
    assert places(preset([0, 1, 2, 5, 9], 10, 20)) == [0, 2, 4, 11, 19]
    assert places(preset([3], 10, 10, required=(8,))) == [0, 3, 8]


@pytest.mark.parametrize("steps", [[], [-1, 3], [0, 10]])
def test_preset_that_does_not_lie_in_its_own_run_is_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not lie in 0 \.\. 9"):
        preset(steps, 10, 20)


# Greedy


def test_relative_l1_divides_by_the_reused_call_and_averages_runs() -> None:
    l1 = np.array([[[0.0, 2.0], [2.0, 0.0]], [[0.0, 3.0], [3.0, 0.0]]])
    norm1 = np.array([[1.0, 4.0], [1.0, 2.0]])
    np.testing.assert_allclose(relative_l1(l1, norm1), [[0, (2 / 4 + 3 / 2) / 2], [(2 / 1 + 3 / 1) / 2, 0]])


def test_greedy_measures_from_the_last_computed_call_and_begins_anew_only_there() -> None:
    """Features on a line, one apart, so relative[s, i] = |i - s|; with threshold 2.5 that gives C s s C s s C.

    Measured from the model call before instead, every distance would be 1 and nothing would ever be computed; summed
    up since the last computed one (1, 1 + 2 = 3) it would be C s C s C s C.
    """
    index = np.arange(7.0)
    relative = np.abs(index[:, None] - index[None])
    assert greedy(relative, 2.5) == (True, False, False, True, False, False, True)
    assert greedy(relative, 3.0) == (True, False, False, True, False, False, True)  # reaching it is enough
    assert greedy(relative, 3.001) == (True, False, False, False, True, False, False)
    assert greedy(relative, 2.5, required=(1,)) == (True, True, False, False, True, False, False)


def test_greedy_of_threshold_zero_computes_all_and_of_infinity_only_the_first() -> None:
    relative = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    assert all(greedy(relative, 0.0))
    assert all(greedy(np.zeros((6, 6)), 0.0))
    assert places(greedy(relative, math.inf)) == [0]
    assert all(greedy(np.full((6, 6), np.nan), 1.0)), "what is not known is computed"


@pytest.mark.parametrize("seed", range(30))
def test_greedy_for_budget_finds_the_smallest_threshold_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 12))
    relative = rng.integers(0, 9, (count, count)) / 8.0  # ties on purpose
    required = set(rng.choice(count, int(rng.integers(0, 3)), replace=False).tolist())
    computed = int(rng.integers(len(required | {0}), count + 1))
    schedule, threshold = greedy_for_budget(relative, computed, required)
    assert schedule == greedy(relative, threshold, required)
    assert sum(schedule) <= computed
    values = np.unique(relative[np.triu_indices(count, 1)])  # those that a walk forwards can meet
    candidates = np.concatenate([values - 1e-9, values, values + 1e-9])
    enough = [c for c in candidates if sum(greedy(relative, float(c), required)) <= computed]
    if threshold == math.inf:
        assert not [c for c in enough if c <= values.max()]
    else:
        # Between two values that occur nothing changes, so smallest means: none that occurs below it would do.
        assert not [c for c in enough if c <= values[values < threshold].max(initial=-1.0)]


def test_longest_interval_is_twice_the_mean_and_at_least_two() -> None:
    assert longest_interval(50, 25) == 4
    assert longest_interval(50, 20) == 5
    assert longest_interval(50, 50) == 2
    assert longest_interval(50, 0) == 100


# Budget


def schedules(
    count: int, computed: int, longest: int, required: Collection[int], resets: Collection[int]
) -> Iterator[Schedule]:
    """Every schedule that the constraints allow, by trying all."""
    fixed = {0, *required, *resets}
    for chosen in itertools.combinations(range(count), computed):
        if fixed <= set(chosen) and all(b - a <= longest for a, b in itertools.pairwise((*chosen, count))):
            yield tuple(i in chosen for i in range(count))


def intervals_of(schedule: Schedule, resets: Collection[int]) -> list[tuple[History, int]]:
    """What a schedule costs is looked up for these, walking the model calls one by one."""
    past: list[int] = []
    found = []
    for t, computed in enumerate((*schedule, True)):
        if not computed:
            continue
        if past and t > past[0] + 1:
            found.append((tuple(past[:2]), t))
        past = [t] if t in resets else [t, *past]
    return found


def total(schedule: Schedule, costs: IntervalCosts, resets: Collection[int]) -> float:
    return sum(costs[interval] for interval in intervals_of(schedule, resets))


def draw(rng: random.Random, count: int) -> tuple[set[int], set[int]]:
    """(required, history resets), some of the time none."""
    required = set(rng.sample(range(count), rng.randint(0, min(2, count))))
    return required, {0, *rng.sample(range(count), rng.randint(0, min(2, count)))} if rng.random() < 0.7 else set()


def equal_costs(
    count: int, longest: int, required: Collection[int] = (), resets: Collection[int] = ()
) -> dict[tuple[History, int], float]:
    return dict.fromkeys(possible_intervals(count, longest, required, resets), 1.0)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("longest", [1, 2, 3, 8])
def test_possible_intervals_are_those_of_all_schedules_there_are_and_no_others(count: int, longest: int) -> None:
    rng = random.Random(count)
    for _ in range(4):
        required, resets = draw(rng, count)
        known = {
            interval
            for computed in range(1, count + 1)
            for schedule in schedules(count, computed, longest, required, resets)
            for interval in intervals_of(schedule, resets)
        }
        found = possible_intervals(count, longest, required, resets)
        assert set(found) == known
        assert len(found) == len(known), "none twice"


@pytest.mark.parametrize("count", range(1, 13))
def test_budget_is_the_best_of_all_schedules(count: int) -> None:
    """Against enumeration: every budget, several random costs, model calls that are required and history resets."""
    rng = random.Random(count)
    feasible = 0
    for computed in range(1, count + 1):
        for _ in range(6):
            required, resets = draw(rng, count)
            longest = rng.randint(1, count)
            # Longer skipped intervals are not always dearer.
            intervals = possible_intervals(count, longest, required, resets)
            costs = {(history, t): rng.random() * (t - history[0]) for history, t in intervals}
            known = [(total(s, costs, resets), s) for s in schedules(count, computed, longest, required, resets)]
            if not known:
                with pytest.raises(ValueError, match="no schedule computes exactly"):
                    budget(count, computed, costs, longest, required, resets)
                continue
            feasible += 1
            found = budget(count, computed, costs, longest, required, resets)
            assert sum(found) == computed
            assert found in [s for _, s in known], "a constraint is broken"
            assert total(found, costs, resets) == pytest.approx(min(known)[0], abs=1e-12)
    assert feasible >= count  # most of the draws above are to be solvable


def test_budget_sees_that_the_last_but_one_counts() -> None:
    """A cost of which the last computed model call alone says nothing: a search over single calls fails."""
    costs = equal_costs(8, 3)
    for history, t in costs:
        if len(history) == 2 and history[0] - history[1] == 1:
            costs[history, t] = 0.0
    # 8 model calls, 4 computed: two adjacent pairs make every skipped interval but none free: 0 1 (2 3) 4 5 (6 7).
    assert places(budget(8, 4, costs, 3)) == [0, 1, 4, 5]


def test_reset_makes_the_history_begin_anew() -> None:
    costs = equal_costs(8, 8, resets={0, 4})
    assert all(len(h) == 1 or h[1] >= 4 for h, _ in costs if h[0] >= 4), "model calls before the reset are not used"
    costs[(4,), 8] = 0.0
    assert places(budget(8, 5, costs, 8, resets={0, 4})) == [0, 1, 2, 3, 4]


def test_no_interval_reaches_over_a_required_call() -> None:
    costs = equal_costs(10, 10, required={6}, resets={0, 3})
    assert not [(h, t) for h, t in costs if h[0] < 3 < t or h[0] < 6 < t]
    assert {0, 3, 6} <= set(places(budget(10, 4, costs, 10, required={6}, resets={0, 3})))


@pytest.mark.parametrize(
    ("count", "computed", "longest", "required"),
    [(10, 2, 3, ()), (10, 2, 10, (4, 7)), (10, 11, 10, ()), (10, 0, 10, ())],
    ids=["skipped interval too short", "more required than computed", "more than there are", "none"],
)
def test_budget_that_cannot_be_met_is_refused(count: int, computed: int, longest: int, required: tuple[int]) -> None:
    with pytest.raises(ValueError, match=f"no schedule computes exactly {computed} of {count}.*allow longer intervals"):
        budget(count, computed, equal_costs(count, longest, required), longest, required)


def test_budget_of_equal_costs_does_not_depend_on_the_order_of_the_table() -> None:
    costs = equal_costs(12, 4)
    assert budget(12, 5, costs, 4) == budget(12, 5, dict(reversed(costs.items())), 4)


def test_budget_of_everything_computes_everything_and_needs_no_costs() -> None:
    assert all(budget(9, 9, {}, 1))


# Histories


def test_histories_are_newest_first_and_forget_what_lies_before_a_reset() -> None:
    compute = (True, True, False, True, False, True, False)
    assert histories(compute) == [(), (0,), (1, 0), (1, 0), (3, 1, 0), (3, 1, 0), (5, 3, 1, 0)]
    assert histories(compute, resets={0, 3}) == [(), (0,), (1, 0), (), (3,), (3,), (5, 3)]
