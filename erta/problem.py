"""The planning problem of one run: all that does not depend on settings, each part worked out once.

Recorded features say little about what an error does later, the prior nothing about the model at hand. So a plan is
searched with both: an interval's cost is the geometric mean of its cost in either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from . import profile_file
from .interval_costs import Key, interval_costs, met
from .joining import filled, reached
from .notes import Note, note
from .predictors import Hold, Line, Predictor
from .prior import ERROR_LENGTH, KINKS, assumed_error_response, correlation, generic_gram, weight
from .profile import SIGMA_TOLERANCE, Profile, Table
from .response import ImpulseResponse
from .schedules import Schedule
from .simulation import ErrorResponse, Fit, Simulation

# Tables times calls cubed, so that an error curve takes half a second: of more recorded runs the first are used.
MAX_WORK = 4e6

# A run of more than so many times a profile's calls is predicted badly: measured at 2x on a tiny model, the error was 3
# times the predicted one at twice the calls, and its check computes most of a run of 4 times the calls.
SPARSE = 2

# Share of the prior in what slopes and corrections are fitted to: a run or two do not show all that features do.
PRIOR_SHARE = 0.01

# How much farther off than held features a plan may be by the prior: 1.6 times at most on four models, 22 settings, 4
# speeds; corrections at their limits are 4 to 400 times as far off.
AMPLIFIED = 2.0

# A final latent is no larger than the first noise and all outputs together, with room for what is kept of an image.
MOST_LATENT = 4.0

# Measured over predicted error where no error response was measured: 0.4 to 1.6 on two trained small models, nine
# settings, median 0.7. Rough models, on which errors grow, are not among them.
UNMEASURED = 0.75

Respond = Callable[[np.ndarray], ImpulseResponse]
"""(schedule (N + 1,)) -> the sampler's impulse response on it. Its UnknownResponse passes through."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One run to plan.

    schedule: (N + 1,) sigmas that the run samples on. respond: the sampler. source: a profile of the same model, or
    None. edges: sigmas at which conditioning starts or ends; the first call behind each is computed and resets the
    history. latent_shape: (B, C, ...) of the run's latent; () for the profile's.
    """

    schedule: np.ndarray
    respond: Respond
    source: Profile | None
    edges: Sequence[float] = ()
    latent_shape: tuple[int, ...] = ()

    def on(self, schedule: np.ndarray) -> Problem:
        """The same run on other sigmas."""
        return replace(self, schedule=schedule)

    @cached_property
    def response(self) -> ImpulseResponse:
        """The sampler's impulse response on the schedule."""
        return self.respond(self.schedule)

    @property
    def calls(self) -> int:
        """M, the run's model calls."""
        return self.response.calls

    @cached_property
    def resets(self) -> frozenset[int]:
        """Calls at which the history begins anew: 0 and the first behind each edge."""
        return resets_at(self.response.sigmas, self.edges)

    @cached_property
    def digest(self) -> str:
        """Of the source profile; "" for none."""
        return "" if self.source is None else profile_file.digest(self.source)

    @cached_property
    def profile(self) -> Profile | None:
        """The profile on the run's sigmas, of no more tables than can be planned by, with the prior's features where it
        does not reach; None where it cannot serve."""
        if _has_equal_neighbours(self.response.sigmas) and self._resampled is not self._used:
            return None
        return self._resampled

    @cached_property
    def _used(self) -> Profile | None:
        if self.source is None:
            return None
        parts = max(1, len(self.source.parts))
        most = parts * max(1, int(MAX_WORK / self.calls**3) // parts)  # of each run all of them
        fits = len(self.source.tables) <= most
        return self.source if fits else Profile(self.source.measured, self.source.tables[:most])

    @cached_property
    def parts(self) -> tuple[Problem, ...]:
        """The same run for each part of a nested latent alone, which has an error response and a size of its own."""
        used = self._used if self.profile is not None else None
        if used is None:
            return ()
        of_each = (tuple(table for table in used.tables if table.stream == stream) for stream in used.parts)
        return tuple(replace(self, source=Profile(used.measured, tables)) for tables in of_each)

    @cached_property
    def _resampled(self) -> Profile | None:
        return None if self._used is None else filled(self._used, self.response.sigmas)

    @property
    def sparse(self) -> bool:
        """Whether the run has so many more calls than the profile that resampled features are too smooth."""
        return (
            self.profile is not None and self.source is not None and is_sparse(self.source.sigmas, self.response.sigmas)
        )

    @cached_property
    def unreached(self) -> np.ndarray:
        """Calls beyond the reach of the profile, which are planned by the prior."""
        if self.source is None or self.profile is None:
            return np.empty(0, dtype=int)
        return np.flatnonzero(~reached(self.source.sigmas, self.response.sigmas))

    @cached_property
    def prior(self) -> Simulation:
        """The run of a model of which nothing is known but the sigmas."""
        sigmas = self.response.sigmas
        return Simulation(self.response, generic_gram(sigmas), assumed_error_response(sigmas), self.resets)

    @cached_property
    def built_in(self) -> Simulation:
        """The run that the built-in plan is fitted to."""
        kinks = KINKS if self.response.multistep else 0.0
        return replace(self.prior, grams=generic_gram(self.response.sigmas, kinks))

    @cached_property
    def fitting(self) -> Simulation:
        """The run that slopes and corrections are fitted to: the mean of the recorded ones and a share of the prior."""
        if self.profile is None:
            return self.built_in
        recorded, generic = self.pooled.grams, self.prior.grams
        size = np.trace(recorded[0, :-1, :-1]) / max(np.trace(generic[0, :-1, :-1]), 1e-30)
        return replace(self.prior, grams=np.concatenate([(1.0 - PRIOR_SHARE) * recorded, PRIOR_SHARE * size * generic]))

    def mean_square(self, compute: Schedule, fit: Fit) -> float:
        """Predicted squared error in the mean over the recorded runs, before `calibrated`."""
        if self.profile is not None and not self.perturbed and len(fit.squares) > 1:
            return float(fit.squares[0]) / (1.0 - PRIOR_SHARE)  # followed already, with the same error response
        return float(self.pooled.follow(compute, fit).squares[0])

    def prior_error(self, compute: Schedule, fit: Fit) -> float:
        """The error of a plan by the prior. Offsets are in root mean squares of a feature, as a Plan has them."""
        return float(self.prior.follow(compute, fit).squares[0] ** 0.5)

    def amplifies(self, prior_error: float, compute: Schedule, plain: type[Predictor]) -> bool:
        """Whether errors grow in a plan of so much `prior_error`: more than AMPLIFIED times what the same calls leave
        by the prior where they are held, or follow the whole line if that is asked for (``plain``), uncorrected.
        """
        simple = self.prior.fit(compute, Line if plain is Line else Hold, False)
        return not prior_error <= AMPLIFIED * float(simple.squares[0] ** 0.5) + 1e-6

    @cached_property
    def pooled(self) -> Simulation:
        """The mean of the recorded runs: squares of it are means over them."""
        return replace(self.prediction, grams=self.prediction.grams.mean(axis=0, keepdims=True))

    @cached_property
    def prediction(self) -> Simulation:
        """The recorded runs, as the error of a plan is predicted."""
        if self.profile is None:
            return self.prior
        grams = profile_grams(self.profile)
        grams = grams / self._latents(grams)[:, None, None]
        return replace(self.prior, grams=grams, error_response=self._error_response())

    def _latents(self, grams: np.ndarray) -> np.ndarray:
        """(T,) mean squares of the final latents, no larger than the features and the first noise can make them."""
        assert self.profile is not None
        end, first = self.response.end, float(self.schedule[0])
        made = np.sqrt(np.maximum(end @ grams[:, :-1, :-1] @ end, 0.0))
        said = np.array([table.latent_rms for table in self.profile.tables])
        found: np.ndarray = np.clip(said, 1e-12, MOST_LATENT * (made + max(first, 1.0))) ** 2
        return found

    def interval_costs(self, keys: list[Key], slope: float | None, corrector: bool) -> tuple[np.ndarray, np.ndarray]:
        """(N,) costs of intervals in the recorded runs, and (N,) by the prior, whose errors grow until the end.

        slope, corrector: as in interval_costs.py. Without a profile both are the prior's.
        """
        weights = np.append(weight(self.response.sigmas, self.positions), 1.0)[[t for _, t in keys]]
        generic = np.array(list(interval_costs(self.prior, keys, slope, corrector).values()))
        generic *= weights * met(self.prior, keys, slope)
        if self.profile is None:
            return generic, generic
        recorded = replace(self.prior, grams=self.pooled.grams)
        return np.array(list(interval_costs(recorded, keys, slope, corrector).values())), generic

    @property
    def positions(self) -> int:
        """Elements per channel of the run's latent; 1 where no shape is known."""
        shape = self.latent_shape or (self.source.measured.latent_shape if self.source else ())
        return prod(shape[2:])

    @property
    def perturbed(self) -> list[Table]:
        """The recorded runs whose error response was measured."""
        return [table for table in self.profile.tables if table.has_error_response] if self.profile else []

    def calibrated(self, squares: np.ndarray) -> np.ndarray:
        """Predicted relative errors, from the prediction's squares of them: 1 where the picture is lost, never more.

        An error cannot grow beyond the latent itself. What is left is scaled by the measured over the predicted error
        of the profile's perturbed run.
        """
        if not self.perturbed:
            return saturated(UNMEASURED**2 * squares)
        factor = float(np.median([table.calibration for table in self.perturbed]))
        found: np.ndarray = np.minimum(factor * saturated(squares), 1.0)
        return found

    def _error_response(self) -> ErrorResponse:
        """Pooled over the runs in which it was measured, squares by squares as errors add up."""
        tables = self.perturbed
        if not tables:
            return self.prior.error_response
        gains = np.stack([table.gain for table in tables])
        squares = np.stack([table.deviation**2 + table.gain**2 for table in tables]).mean(axis=0)
        gain = gains.mean(axis=0)
        stochastic = self.response.stochastic
        alike = np.eye(self.calls) if stochastic else correlation(self.response.sigmas, ERROR_LENGTH)
        return ErrorResponse(gain, np.sqrt(np.maximum(squares - gain**2, 0.0)), alike)

    def notes(self) -> tuple[Note, ...]:
        """How well the profile fits the run."""
        source, used, profile = self.source, self._used, self.profile
        if source is None or used is None:
            return ()
        truncated = (note("profile_truncated", tables=len(source.tables), used=len(used.tables)),)
        found: tuple[Note, ...] = truncated if used is not source else ()
        if profile is None:
            return (*found, note("profile_equal_sigmas" if self._resampled else "profile_beyond"))
        if not self.perturbed:
            at_output = source.measured.level == "output"  # where ERTA Profile measures it
            found += (note("no_error_response_remedy" if at_output else "no_error_response"),)
        return found + self._notes_of_sigmas(source)

    def _notes_of_sigmas(self, source: Profile) -> tuple[Note, ...]:
        found: tuple[Note, ...] = ()
        if self.unreached.size:
            found += (note("profile_reach", calls=self.unreached.size, all=self.calls),)
        if self.profile is not self._used:
            counts = note("profile_resampled_calls", profile_calls=source.calls, calls=self.calls)
            found += (note("profile_resampled_sigmas") if source.calls == self.calls else counts,)
        return (*found, note("profile_sparse")) if self.sparse else found


def is_sparse(measured: np.ndarray, sigmas: np.ndarray) -> bool:
    """Whether a run calls its model more than SPARSE times as densely as a profile did, where both do. (M,), (M',)."""
    low, high = max(measured.min(), sigmas.min()), min(measured.max(), sigmas.max())
    ours, theirs = (int(((each >= low) & (each <= high)).sum()) for each in (sigmas, measured))
    return SPARSE * theirs < ours


def coverage(measured: np.ndarray, sigmas: np.ndarray) -> float:
    """How much of a run a profile serves: the share of its calls that it reaches, 0 where it is too sparse."""
    return 0.0 if is_sparse(measured, sigmas) else float(reached(measured, sigmas).mean())


def resets_at(sigmas: np.ndarray, edges: Sequence[float]) -> frozenset[int]:
    """Call 0 and the first one behind each edge, whichever side a call exactly on the edge belongs to.

    sigmas: (M,) of the run's calls.
    """
    found = {0}
    for edge in edges:
        # Edges come in float64, sigmas and ComfyUI's comparison in float32.
        sides = np.where(np.isclose(sigmas, edge, rtol=SIGMA_TOLERANCE, atol=0.0), 0.0, np.sign(sigmas - edge))
        found.update(int(i) for i in np.flatnonzero(np.diff(sides)) + 1)
    return frozenset(found)


def saturated(squares: np.ndarray) -> np.ndarray:
    """Relative errors from their squares, as linear theory has them; at most 1, and 0.7 where theory says 1."""
    found: np.ndarray = np.minimum(np.sqrt(squares / (1.0 + squares)), 1.0)
    return found


def profile_grams(profile: Profile) -> np.ndarray:
    """(T, M + 1, M + 1): the extended Gram matrix per element of each recorded run and stream."""
    return np.stack([table.extended_gram() / table.elements for table in profile.tables])


def _has_equal_neighbours(sigmas: np.ndarray) -> bool:
    """As heun's have: a resampled profile cannot tell such calls apart."""
    return bool(np.isclose(sigmas[1:], sigmas[:-1], rtol=SIGMA_TOLERANCE, atol=0.0).any())
