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
from .notes import Note, note
from .prior import ERROR_LENGTH, KINKS, assumed_error_response, correlation, generic_gram, weight
from .profile import SIGMA_TOLERANCE, Profile, Table
from .resampling import resampled
from .response import ImpulseResponse
from .simulation import ErrorResponse, Fit, Simulation

# Tables times calls cubed, which takes a fifth of a second: of more recorded runs the first are used.
MAX_WORK = 1.5e7

# A run of more than so many times a profile's calls is predicted badly: measured at 2x on a tiny model, the error was 3
# times the predicted one at twice the calls, and its check computes most of a run of 4 times the calls.
SPARSE = 2

# Share of the prior in what slopes and corrections are fitted to: a run or two do not show all that features do.
PRIOR_SHARE = 0.01

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
        """The profile on the run's sigmas, of no more tables than can be planned by; None where it cannot serve."""
        if _has_equal_neighbours(self.response.sigmas) and self._resampled is not self._used:
            return None
        return self._resampled

    @cached_property
    def _used(self) -> Profile | None:
        if self.source is None:
            return None
        most = max(1, int(MAX_WORK / self.calls**3))
        fits = len(self.source.tables) <= most
        return self.source if fits else Profile(self.source.measured, self.source.tables[:most])

    @cached_property
    def _resampled(self) -> Profile | None:
        return None if self._used is None else resampled(self._used, self.response.sigmas)

    @property
    def sparse(self) -> bool:
        """Whether the run has so many more calls than the profile that resampled features are too smooth."""
        return self.source is not None and self.profile is not None and SPARSE * self.source.calls < self.calls

    @property
    def unmeasured(self) -> frozenset[int]:
        """Calls outside the range of sigmas that the profile was measured on."""
        if self.source is None or self.profile is None:
            return frozenset()
        low, high = float(self.source.sigmas.min()), float(self.source.sigmas.max())
        margin = 0.02 * (high - low)
        sigmas = self.response.sigmas
        return frozenset(int(i) for i in np.flatnonzero((sigmas > high + margin) | (sigmas < low - margin)))

    @cached_property
    def prior(self) -> Simulation:
        """The run of a model of which nothing is known but the sigmas."""
        sigmas = self.response.sigmas
        return Simulation(self.response, generic_gram(sigmas), assumed_error_response(sigmas), self.resets)

    @cached_property
    def fitting(self) -> Simulation:
        """The run that slopes and corrections are fitted to: recorded runs and a share of the prior, or the prior."""
        if self.profile is None:
            kinks = KINKS if self.response.multistep else 0.0
            return replace(self.prior, grams=generic_gram(self.response.sigmas, kinks))
        grams, generic = self.prediction.grams, self.prior.grams
        count = len(grams)
        size = np.trace(grams[:, :-1, :-1].mean(axis=0)) / max(np.trace(generic[0, :-1, :-1]), 1e-30)
        mixed = [(1.0 - PRIOR_SHARE) * grams, PRIOR_SHARE * count * size * generic]
        return replace(self.prior, grams=np.concatenate(mixed))

    def followed(self, fit: Fit) -> np.ndarray | None:
        """(T,) the fit's squares of the recorded runs alone, where no error response would change them; else None."""
        unchanged = self.profile is not None and not self.perturbed
        return fit.squares[:-1] / (1.0 - PRIOR_SHARE) if unchanged else None

    @cached_property
    def prediction(self) -> Simulation:
        """The recorded runs, as the error of a plan is predicted."""
        if self.profile is None:
            return self.prior
        squares = np.array([max(table.latent_rms, 1e-12) ** 2 for table in self.profile.tables])
        grams = profile_grams(self.profile) / squares[:, None, None]
        return replace(self.prior, grams=grams, error_response=self._error_response())

    def interval_costs(self, keys: list[Key], slope: float | None, corrector: bool) -> tuple[np.ndarray, np.ndarray]:
        """(N,) costs of intervals in the recorded runs, and (N,) by the prior, whose errors grow until the end.

        slope, corrector: as in interval_costs.py. Without a profile both are the prior's.
        """
        weights = np.append(weight(self.response.sigmas, self.positions), 1.0)[[t for _, t in keys]]
        generic = np.array(list(interval_costs(self.prior, keys, slope, corrector).values()))
        generic *= weights * met(self.prior, keys, slope)
        if self.profile is None:
            return generic, generic
        recorded = replace(self.prior, grams=self.prediction.grams)
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
        found = []
        if used is not source:
            found.append(note("profile_truncated", tables=len(source.tables), used=len(used.tables)))
        if profile is None:
            return (*found, note("profile_equal_sigmas"))
        if not self.perturbed:
            at_output = source.measured.level == "output"  # where ERTA Profile measures it
            found.append(note("no_error_response_remedy" if at_output else "no_error_response"))
        if profile is not used:
            counts = note("profile_resampled_calls", profile_calls=source.calls, calls=self.calls)
            found.append(note("profile_resampled_sigmas") if source.calls == self.calls else counts)
        return (*found, note("profile_sparse")) if self.sparse else tuple(found)


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
