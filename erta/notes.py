"""Notes: what a report says about a run, as records that a front end can colour, count and translate.

`TEXTS` holds every text of the pack's notes. locales/<language>/main.json holds the same texts by the same codes under
``ertacache.notes``; a test compares them. Whoever shows a note chooses by `Note.level` and `Note.code`, never by words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

INFO, WARNING = "info", "warning"


@dataclass(frozen=True)
class Note:
    """One fact about a run.

    level: "info", or "warning" where the run did not go as asked. code: which fact, a key of `TEXTS`. text: English,
    without a full stop at the end. values: what stands in the braces of the text, as text.
    """

    level: str
    code: str
    text: str
    values: Mapping[str, str] = field(default_factory=dict)


def note(code: str, **values: object) -> Note:
    """The note of a code with its values filled in. Raises KeyError for an unknown code or a missing value."""
    level, text = TEXTS[code]
    filled = {name: str(value) for name, value in values.items()}
    return Note(level, code, text.format_map(filled), filled)


TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # What was planned, and from what.
        "too_few_calls": (INFO, "{calls} model calls are too few to reuse any (at least {least}): all are computed"),
        "speed_limited": (INFO, "speed {speed} is more than {calls} model calls allow: {computed} computed, {limit}x"),
        "longest_gap_exceeded": (
            INFO,
            "with {computed} computed, longest_gap {wanted} cannot be kept: the longest gap is {longest}",
        ),
        "search_too_long": (INFO, "{calls} model calls at this speed take too long to search: evenly spread instead"),
        "preset_stretched": (INFO, "the preset is for {steps} steps: stretched to {calls} model calls"),
        "preset_other_model": (
            INFO,
            "the preset was published for {models}, this is {model_class} with {size} billion parameters: "
            "it may fit badly",
        ),
        "paper_without_profile": (INFO, "paper mode without a profile: evenly spread, held"),
        "threshold_found": (INFO, "threshold {threshold} found from the speed"),
        "held": (INFO, "reused steps are held and not corrected: the predicted error is lower that way"),
        "built_in": (INFO, "built-in plan: nothing was measured, so no error is predicted"),
        "carried": (INFO, "plan carried by the workflow"),
        "carried_refused": (WARNING, "the workflow's plan is not used: {reason}"),
        "timesteps_not_predicted": (
            INFO,
            "adjusted sigmas lead to another picture by themselves, which the predicted error leaves out",
        ),
        "timesteps_cross_edge": (
            INFO,
            "adjusted sigmas would cross the edge of a conditioning elsewhere: nominal sigmas kept",
        ),
        "timesteps_need_profile": (INFO, "timestep adjustment needs a profile: nominal sigmas kept"),
        "timesteps_sampler": (
            INFO,
            "this sampler does not call the model once per step: nominal sigmas kept",
        ),
        "offloaded": (INFO, "the cache is kept in main memory"),
        # Which profile, and how well it fits.
        "profile_found": (INFO, "profile {name}"),
        "profile_unreadable": (WARNING, "the stored profile {name} is not used: {reason}"),
        "profile_resampled_sigmas": (INFO, "the profile has other sigmas: resampled over sigma"),
        "profile_resampled_calls": (
            INFO,
            "the profile has {profile_calls} model calls, this run {calls}: resampled over sigma",
        ),
        "profile_sparse": (
            INFO,
            "the profile has too few steps: the predicted error is too low and the check is off. "
            "Record one with these steps",
        ),
        "profile_truncated": (INFO, "the plan uses {used} of the profile's {tables} recorded tables: more take long"),
        "profile_equal_sigmas": (
            WARNING,
            "the profile is not used: the sampler calls the model twice at one sigma. Record one with these steps",
        ),
        "no_error_response": (INFO, "how errors grow was not measured: the predicted error is on the high side"),
        "no_error_response_remedy": (
            INFO,
            "how errors grow was not measured (ERTA Profile does): the predicted error is on the high side",
        ),
        "profile_differs": (INFO, "{field}: the profile was measured with {measured}, now {here}"),
        "profile_differs_used": (INFO, "{field}: the profile is used although measured at {measured}, now {here}"),
        # How a recording went.
        "recording_first": (
            INFO,
            "no profile fits this model yet: rendered in full and recorded, the next render is fast",
        ),
        "recorded": (INFO, "profile kept as {name}"),
        "runs_recorded": (INFO, "runs recorded: {runs}"),
        "not_recorded": (WARNING, "nothing recorded: {reason}"),
        "not_recorded_run": (WARNING, "nothing recorded: the run did not go as planned"),
        "error_response_measured": (INFO, "the response to errors was measured"),
        "error_response_failed": (INFO, "the response to errors was not measured: the run did not go as planned"),
        # What happened on the way.
        "computed_all": (WARNING, "everything computed: {reason}"),
        "other_caches": (
            WARNING,
            "everything computed: {names} is on this model too, and two caches spoil each other. Remove one of them",
        ),
        "too_many_calls": (WARNING, "the sampler called the model more often than the {calls} times that were planned"),
        "other_sigma": (
            WARNING,
            "model call {call} came at sigma {sigma} instead of {expected}: all computed from there",
        ),
        "unlike_profile": (
            INFO,
            "unlike the profiled runs from model call {call} on: {count} computed on top of the plan",
        ),
        "cache_unfit": (
            WARNING,
            "the cache did not fit at model call {call} (another shape, device or condition): "
            "{count} computed that were to be reused",
        ),
    }
)
