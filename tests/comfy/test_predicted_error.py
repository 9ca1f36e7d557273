"""The predicted error against ComfyUI's own sampler functions, run on recorded features."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.plan import Plan
from ertacache.erta.planner import solve
from ertacache.erta.problem import Problem, profile_grams
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.recorder import Recorder
from ertacache.erta.replay import Replay
from ertacache.erta.response import ImpulseResponse
from ertacache.erta.settings import Settings
from ertacache.erta.simulation import ErrorResponse, Simulation

SAMPLERS = ("euler", "heun", "dpmpp_2m", "uni_pc", "uni_pc_bh2", "res_multistep", "deis", "ipndm", "dpm_2", "ddim")
STEPS, ELEMENTS, RUNS = 14, 40, 3
MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "x", "simple", STEPS, 6.0, (1, 40), "output", "1", "1")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """uni_pc and others make constants of the default type, and would mix float32 into a float64 run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def schedule(wan: Any) -> np.ndarray:
    import comfy.samplers

    sampling = wan.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).double().numpy()


Known = Callable[[str], Callable[[np.ndarray], ImpulseResponse]]


@pytest.fixture(scope="module")
def respond_with(wan: Any) -> Known:
    """respond_with(sampler name) -> the function that make_plan wants; each sampler is probed once per schedule."""
    import comfy.samplers

    from ertacache.comfy_erta.probing import sampler_response

    @functools.cache
    def probed(name: str, sigmas: tuple[float, ...]) -> ImpulseResponse:
        return sampler_response(comfy.samplers.sampler_object(name), np.array(sigmas), wan)

    return lambda name: lambda sigmas: probed(name, tuple(sigmas.tolist()))


def features_at(sigmas: np.ndarray) -> torch.Tensor:
    """(M, RUNS, 40) smooth in sigma plus a bit of noise, so that model calls at one sigma (heun) differ too."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 1, RUNS, ELEMENTS))
    at = sigmas[:, None, None]
    noisy = a + b * at + c * np.sin(4 * at + np.arange(RUNS)[:, None])
    noisy += 0.02 * rng.normal(size=noisy.shape)
    return torch.from_numpy(noisy.astype(np.float32).astype(np.float64))  # what a Recorder keeps without loss


def record(response: ImpulseResponse) -> Profile:
    tables = []
    features = features_at(response.sigmas)
    for run in range(RUNS):
        recorder = Recorder(response.sigmas)
        for i in range(response.calls):
            recorder.observe(i, "guided", features[i, run])
        tables += recorder.tables(run, 1.0)
    return Profile(MEASURED, tuple(tables))


def run_sampler(wan: Any, name: str, schedule: np.ndarray, d_at: Callable[[int], torch.Tensor]) -> np.ndarray:
    """(RUNS, 40) last latent of ComfyUI's sampler function, whose n-th model call returns ``d_at(n)``."""
    import comfy.samplers

    from ertacache.comfy_erta.probing import _ProbedModel

    calls = itertools.count()

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x - d_at(next(calls)).reshape(x.shape) * sigma.reshape(-1, 1, 1, 1, 1)

    sampler = comfy.samplers.sampler_object(name)
    first = torch.from_numpy(np.random.default_rng(99).normal(size=(RUNS, 1, 1, 1, ELEMENTS)))
    extra_args = {"model_options": {"transformer_options": {}}, "seed": 0, "denoise_mask": None}
    common = {"extra_args": extra_args, "callback": None, "disable": True}
    sigmas = torch.tensor(schedule, dtype=torch.float64)
    probed = _ProbedModel(model, wan, name, None)
    last = sampler.sampler_function(probed, first, sigmas, **common, **sampler.extra_options)
    assert last.dtype == torch.float64
    return last.numpy().reshape(RUNS, ELEMENTS)


def final_errors(wan: Any, name: str, schedule: np.ndarray, plan: Plan, features: torch.Tensor) -> np.ndarray:
    """Recorded minus followed: what the latent lacks at the end of a run that follows the plan."""
    replay = Replay(plan)
    reused = 0

    def follow(i: int) -> torch.Tensor:
        nonlocal reused
        predicted = replay.predict(i, "guided")
        reused += predicted is not None
        return replay.observe(i, "guided", features[i]) if predicted is None else predicted

    recorded = run_sampler(wan, name, schedule, lambda i: features[i])
    followed = run_sampler(wan, name, schedule, follow)
    assert reused == plan.calls - plan.computed
    return recorded - followed


def without_response(plan: Plan, response: ImpulseResponse, profile: Profile) -> tuple[Plan, np.ndarray]:
    """The plan fitted to a model that returns what was recorded at any latent, and (RUNS,) RMS errors."""
    grams = profile_grams(profile)
    nothing = np.zeros(response.calls)
    simulation = Simulation(
        response, grams, ErrorResponse(nothing, nothing, np.eye(response.calls)), frozenset(plan.resets)
    )
    shape = simulation.fit(plan.compute, plan.settings.method(True, False)[0], plan.settings.corrector)
    fitted = {name: tuple(getattr(shape, name)) for name in ("coefficients", "offsets", "corrections")}
    return replace(plan, **fitted), np.sqrt(shape.squares)


@pytest.mark.parametrize("corrector", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("predictor", ["auto", "hold", "linear", "affine"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # ComfyUI's deis
def test_predicted_error_is_that_of_the_sampler_itself(
    wan: Any, respond_with: Known, schedule: np.ndarray, name: str, predictor: str, corrector: bool
) -> None:
    """To 1e-6, for each recorded run; with an edge inside the run."""
    respond = respond_with(name)
    response = respond(schedule)
    profile = record(response)
    settings = Settings(2.5, predictor=predictor, corrector=corrector)
    plan = solve(Problem(schedule, respond, profile, edges=(0.93,)), settings)
    plan, predicted = without_response(plan, response, profile)
    assert plan.computed < plan.calls
    assert any(plan.corrections) == corrector
    found = final_errors(wan, name, schedule, plan, features_at(response.sigmas))
    # Offsets of an affine prediction are in units of the feature at hand, which differs a little from run to run.
    within = 0.02 if predictor == "affine" else 1e-6
    np.testing.assert_allclose(np.sqrt(np.mean(found**2, axis=1)), predicted, rtol=within)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "res_multistep"])
def test_corrector_lowers_the_real_error_of_the_built_in_plan(
    wan: Any, respond_with: Known, schedule: np.ndarray, name: str
) -> None:
    """On features without noise, with nothing measured: the corrector's weight is the shape's alone."""
    respond = respond_with(name)
    response = respond(schedule)
    sigmas = response.sigmas[:, None, None]
    a, b, c = np.random.default_rng(5).normal(size=(3, 1, RUNS, ELEMENTS))
    features = torch.from_numpy(a + b * sigmas + c * np.exp(-3 * sigmas))
    left = {}
    for corrector in (False, True):
        plan = solve(Problem(schedule, respond, None), Settings(2.0, corrector=corrector))
        left[corrector] = np.linalg.norm(final_errors(wan, name, schedule, plan, features))
    assert left[True] < 0.7 * left[False]


def test_plan_that_computes_all_leaves_no_error(wan: Any, respond_with: Known, schedule: np.ndarray) -> None:
    respond = respond_with("dpmpp_2m")
    plan = solve(Problem(schedule, respond, None), Settings(1.0))
    assert not final_errors(wan, "dpmpp_2m", schedule, plan, features_at(respond(schedule).sigmas)).any()
