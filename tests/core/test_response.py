"""The probe of a sampler's response, on samplers small enough that theirs is known in closed form."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ertacache.erta.planner import euler_response
from ertacache.erta.response import MAX_CALLS, Denoise, UnknownResponse, probe

SIGMAS = [1.0, 0.8, 0.5, 0.3, 0.0]
STEPS = np.diff(SIGMAS)


def derivative(model: Denoise, x: Tensor, sigma: float) -> Tensor:
    return (x - model(x, x.new_full((x.shape[0],), sigma))) / sigma


def euler(model: Denoise, x: Tensor) -> Tensor:
    for sigma, h in zip(SIGMAS, STEPS, strict=False):
        x = x + h * derivative(model, x, sigma)
    return x


def euler_in_place(model: Denoise, x: Tensor) -> Tensor:
    for sigma, h in zip(SIGMAS, STEPS, strict=False):
        x += h * derivative(model, x, sigma)
    return x


def heun(model: Denoise, x: Tensor) -> Tensor:
    """Two model calls per step, the last step plain Euler, as sigma 0 has no derivative."""
    for sigma, following, h in zip(SIGMAS, SIGMAS[1:], STEPS, strict=False):
        d = derivative(model, x, sigma)
        if following > 0:
            d = (d + derivative(model, x + h * d, following)) / 2
        x = x + h * d
    return x


def two_step(model: Denoise, x: Tensor) -> Tensor:
    """Adams-Bashforth with the weights of equal steps: 1.5 d - 0.5 d_before."""
    before = None
    for sigma, h in zip(SIGMAS, STEPS, strict=False):
        d = derivative(model, x, sigma)
        x = x + h * (d if before is None else 1.5 * d - 0.5 * before)
        before = d
    return x


def test_euler_output_moves_every_later_latent_by_its_step() -> None:
    response = probe(euler)
    np.testing.assert_array_equal(response.sigmas, SIGMAS[:-1])
    expected = np.triu(np.repeat(STEPS[:, None], 5, axis=1), 1)
    np.testing.assert_allclose(response.matrix, expected, atol=1e-15)
    np.testing.assert_allclose(response.matrix, euler_response(np.array(SIGMAS)).matrix, atol=1e-15)
    np.testing.assert_allclose(response.end, STEPS, atol=1e-15)
    assert response.calls == 4


def test_heun_trial_latent_and_halved_steps_are_seen() -> None:
    response = probe(heun)
    np.testing.assert_array_equal(response.sigmas, [1.0, 0.8, 0.8, 0.5, 0.5, 0.3, 0.3])
    a, b, c, last = STEPS
    # Model calls 0, 2, 4 open a step, 1, 3, 5 are its trial at the other end, 6 is the plain last step.
    # Columns: x at model calls 0 to 6, x at the end. A trial sees the whole step of the output before it.
    expected = [
        [0, a, a / 2, a / 2, a / 2, a / 2, a / 2, a / 2],
        [0, 0, a / 2, a / 2, a / 2, a / 2, a / 2, a / 2],
        [0, 0, 0, b, b / 2, b / 2, b / 2, b / 2],
        [0, 0, 0, 0, b / 2, b / 2, b / 2, b / 2],
        [0, 0, 0, 0, 0, c, c / 2, c / 2],
        [0, 0, 0, 0, 0, 0, c / 2, c / 2],
        [0, 0, 0, 0, 0, 0, 0, last],
    ]
    np.testing.assert_allclose(response.matrix, expected, atol=1e-15)


def test_two_step_output_also_moves_the_following_step() -> None:
    a, b, c, d = STEPS
    end = [a - 0.5 * b, 1.5 * b - 0.5 * c, 1.5 * c - 0.5 * d, 1.5 * d]
    response = probe(two_step)
    np.testing.assert_allclose(response.end, end, atol=1e-15)
    np.testing.assert_allclose(response.matrix[0], [0, a, a - 0.5 * b, a - 0.5 * b, a - 0.5 * b], atol=1e-15)


def test_what_takes_back_part_of_a_step_is_a_multistep_method() -> None:
    assert probe(two_step).multistep
    assert not probe(euler).multistep
    assert not probe(heun).multistep, "its trial latent is one of every two"
    assert not euler_response(np.array([1.0, 0.5, 0.0])).multistep, "two calls show nothing"
    drowned = euler_response(np.linspace(1.0, 0.0, 11))
    falling = drowned.matrix * 0.8 ** np.maximum(np.arange(11) - np.arange(10)[:, None], 0)
    assert not replace(drowned, matrix=falling, stochastic=True).multistep, "fresh noise takes nothing back"


def test_sampler_that_steps_in_place_has_the_same_impulse_response() -> None:
    np.testing.assert_allclose(probe(euler_in_place).matrix, probe(euler).matrix, atol=1e-15)


def test_response_in_float32_agrees_to_float32() -> None:
    single = probe(two_step, torch.float32)
    np.testing.assert_allclose(single.matrix, probe(two_step).matrix, atol=3e-7)
    assert single.matrix.dtype == np.float64


@pytest.mark.parametrize("run", [euler, heun, two_step])
def test_impulse_response_predicts_a_run_on_any_outputs(run) -> None:
    """The end of a run with arbitrary outputs is the first latent plus the outputs times the impulse response."""
    response = probe(run)
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(1, 3, dtype=torch.float64, generator=generator)
    outputs = torch.randn(response.calls, 1, 3, dtype=torch.float64, generator=generator)
    calls = iter(outputs)
    last = run(lambda x, sigma: x - sigma.reshape(-1, 1) * next(calls), first.clone())
    expected = first + torch.einsum("m,mbn->bn", torch.from_numpy(response.end), outputs)
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)


def adaptive(model: Denoise, x: Tensor) -> Tensor:
    """Halves its step where the output is large, as dpm_adaptive does."""
    sigma = 1.0
    while sigma > 1e-3:
        d = derivative(model, x, sigma)
        following = sigma / 2 if float(d.abs().max()) > 0.8 else sigma / 4
        x, sigma = x + (following - sigma) * d, following
    return x


def adaptive_sigma(model: Denoise, x: Tensor) -> Tensor:
    """The same number of calls, but the second one's place depends on the first one's output."""
    d = derivative(model, x, 1.0)
    return derivative(model, x, 0.5 + 0.01 * float(d.abs().max()))


def squares(model: Denoise, x: Tensor) -> Tensor:
    last = euler(model, x)
    return last + 1e-3 * last**2


def shifts(model: Denoise, x: Tensor) -> Tensor:
    return euler(model, x) + 1.0


def evaluates_at_zero(model: Denoise, x: Tensor) -> Tensor:
    return model(euler(model, x), x.new_zeros(x.shape[0]))


def never_evaluates(model: Denoise, x: Tensor) -> Tensor:
    return x + 1.0


def gives_nan(model: Denoise, x: Tensor) -> Tensor:
    return euler(model, x) * float("nan")


def asks_at_nan(model: Denoise, x: Tensor) -> Tensor:
    return model(x, x.new_full((x.shape[0],), float("nan")))


def never_ends(model: Denoise, x: Tensor) -> Tensor:
    while True:
        x = model(x, x.new_ones(x.shape[0]))


def forgets_the_model(model: Denoise, x: Tensor) -> Tensor:
    euler(model, x)
    return x


REFUSED = {
    "number of calls depends on the outputs": (adaptive, "depends on the model's outputs"),
    "place of a call depends on the outputs": (adaptive_sigma, "depends on the model's outputs"),
    "a square": (squares, "not a linear function"),
    "an added constant": (shifts, "not a linear function"),
    "sigma 0": (evaluates_at_zero, "sigma 0"),
    "no model call": (never_evaluates, "never calls"),
    "NaN in the result": (gives_nan, "not finite"),
    "NaN as sigma": (asks_at_nan, "sigma nan"),
    "no end": (never_ends, f"more than {MAX_CALLS}"),
    "outputs without effect": (forgets_the_model, "does not depend"),
}


@pytest.mark.parametrize(("run", "reason"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore:invalid value")
def test_sampler_without_a_known_response_is_refused_with_the_reason(run, reason: str) -> None:
    with pytest.raises(UnknownResponse, match=reason):
        probe(run)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_slight_square_is_refused_in_both_precisions(dtype: torch.dtype) -> None:
    with pytest.raises(UnknownResponse, match="not a linear function"):
        probe(squares, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_to_float32_on_the_way_is_no_square(dtype: torch.dtype) -> None:
    """As samplers of other packs do whose coefficients are float32 whatever the latent is."""

    def rounding(model: Denoise, x: Tensor) -> Tensor:
        return euler(lambda at, sigma: model(at, sigma).float().to(at), x)

    response = probe(rounding, dtype)
    np.testing.assert_allclose(response.matrix, probe(euler).matrix, atol=1e-6)


def test_probe_touches_no_random_state() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    probe(heun)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_probe_twice_gives_the_same_numbers() -> None:
    assert np.array_equal(probe(heun).matrix, probe(heun).matrix)


def test_evaluates_once_per_step_tells_euler_from_heun_and_from_another_schedule() -> None:
    schedule = np.array(SIGMAS)
    assert probe(euler).calls_once_per_step(schedule)
    assert probe(two_step).calls_once_per_step(np.array(SIGMAS) * (1 + 1e-7))
    assert not probe(heun).calls_once_per_step(schedule)
    assert not probe(euler).calls_once_per_step(np.array([1.0, 0.8, 0.51, 0.3, 0.0]))
    assert not probe(euler).calls_once_per_step(schedule[:-1])
