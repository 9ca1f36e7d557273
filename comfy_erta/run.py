"""One sampling run: a session is born on the first line of OUTER_SAMPLE and gone in its ``finally``.

Nothing is kept on the model, in a MODEL output or in a module. The wrappers that act inside the run live in a clone of
the guider's options made for this run only.
"""

import time
from functools import partial
from math import prod
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..erta.notes import note
from ..erta.plan_file import plan_to_json
from ..erta.profile import ProfileError
from ..erta.response import UnknownResponse
from ..erta.schedules import as_text
from .blocks import BlocksLevel, block_slots
from .edges import conditioning_edges, guidance_edges, guider_edges
from .output import OutputLevel
from .report import Report
from .session import KEY, Session
from .stopwatch import Stopwatch
from .task import Context, Start, Task, Watcher

# Other step caches, by a part of the names that they leave in the options or that their functions come from. A help:
# those of other names are noticed by what they do (neighbours.py).
_OTHER_CACHES = ("easycache", "lazycache", "teacache", "magcache", "fbcache", "first_block", "wavespeed", "cachedit")
_OTHER_CACHES += ("cache_dit", "spectrum", "taylorseer")


def attach(model: Any, task: Task, watcher: Watcher | None = None) -> Any:
    """A clone of a ModelPatcher whose sampling runs the task observes. A second application replaces the first."""
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_observe_run, task, watcher))
    clone.set_attachments(KEY, task)
    return clone


def attached_task(model: Any) -> Task | None:
    """The task that ``attach`` put on a ModelPatcher, None where there is none."""
    return model.get_attachment(KEY)


def _observe_run(
    task: Task,
    watcher: Watcher | None,
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    guider = executor.class_obj
    try:
        # Behind the sigmas come denoise_mask, callback, disable_pbar, seed, latent_shapes.
        shapes = kwargs.get("latent_shapes") or next(iter(args[4:5]), ())
        context = _context(guider, sampler, sigmas, noise, shapes)
        start = _begin(task, context)
    except ValueError as refused:
        if watcher is not None:
            watcher.refused(str(refused))
        raise
    session, stopwatch = Session(start, context.parts), Stopwatch(guider.model_patcher.load_device)
    options = guider.model_options
    try:
        if watcher is not None:
            watcher.begin(start)
            args, kwargs = _paced(watcher, args, kwargs)
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        _wrap_calls(guider, session, stopwatch, watcher)
        if start.plan is not None and start.plan.schedule:
            sigmas = torch.tensor(start.plan.schedule, dtype=sigmas.dtype, device=sigmas.device)
        began = time.perf_counter()
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        start.finish(_report(session, stopwatch, len(sigmas) - 1, time.perf_counter() - began), samples)
        return samples
    finally:
        guider.model_options = options
        if start.observer is not None:
            start.observer.close()


def _paced(watcher: Watcher, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments behind the sigmas, which are denoise_mask, callback and more, with the watcher's callback."""
    if "callback" in kwargs:
        return args, {**kwargs, "callback": watcher.paced(kwargs["callback"])}
    return (*args[:1], *map(watcher.paced, args[1:2]), *args[2:]), kwargs


def _context(guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor, latent_shapes: Any) -> Context:
    schedule = sigmas.detach().cpu().double().numpy()  # in this order: Apple's devices have no float64
    sampling = guider.model_patcher.get_model_object("model_sampling")
    declared = conditioning_edges(guider.conds, sampling, schedule)
    kept = (*guidance_edges(guider.model_options, schedule), *guider_edges(guider, sampling, schedule))
    edges = tuple(sorted({*declared, *kept}))
    shapes = tuple(map(tuple, latent_shapes))
    packed = len(shapes) > 1 and sum(prod(shape[1:]) for shape in shapes) == prod(noise.shape[1:])
    return Context(guider, sampler, schedule, shapes if packed else (tuple(noise.shape),), edges)


def _begin(task: Task, context: Context) -> Start:
    try:
        # Theirs would fill in model calls that ours takes for computed, and keeps or records as such.
        others = other_caches(context.guider.model_options)
        if not others:
            return task.begin(context)
        reason = note("other_caches", names=", ".join(others))
    except (UnknownResponse, ProfileError) as unknown:  # what cannot be described is left alone
        reason = note("computed_all", reason=unknown)
    return Start(notes=(reason,), finish=lambda report, samples: task.on_report(report))


def other_caches(model_options: dict[str, Any]) -> tuple[str, ...]:
    """Names of the step caches of others that a run would meet, as they are found in its options."""
    options = model_options.get("transformer_options", {})
    around = model_options.get("model_function_wrapper")
    origin = f"{getattr(around, '__module__', '')}.{getattr(around, '__qualname__', type(around).__qualname__)}"
    names = [origin, *options, *(key for kind in options.get("wrappers", {}).values() for key in kind)]
    found = {known for known in _OTHER_CACHES for name in names if known in str(name).lower().replace("-", "")}
    return tuple(sorted(found))


def _wrap_calls(guider: Any, session: Session, stopwatch: Stopwatch, watcher: Watcher | None) -> None:
    """Put the session's level around every model call of the sampler."""
    level: OutputLevel | BlocksLevel = OutputLevel(session)
    if session.observer is not None:
        if session.start.level == "blocks":
            level = BlocksLevel(session, block_slots(guider.model_patcher))
        level.prepare(guider)

    def predict_noise(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        session.call += 1
        started = stopwatch.now()
        denoised, reused = level.call_model(executor, *args, **kwargs)
        stopwatch.lap("reused" if reused else "computed", started)
        if watcher is not None:
            watcher.called(session.call, not reused)
        return denoised

    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, KEY, predict_noise, guider.model_options, is_model_options=True
    )


def _report(session: Session, stopwatch: Stopwatch, steps: int, seconds: float) -> Report:
    start, plan, observer = session.start, session.start.plan, session.start.observer
    notes = (*start.notes, *filter(None, [session.mismatch]), *(() if observer is None else observer.notes))
    return Report(
        calls=session.call + 1,
        steps=steps,
        computed=len(stopwatch.laps["computed"]),
        reused=len(stopwatch.laps["reused"]),
        seconds=seconds,
        seconds_computed=stopwatch.seconds("computed"),
        seconds_reused=stopwatch.seconds("reused"),
        cache_bytes=0 if observer is None else observer.cache_bytes,
        notes=notes,
        complete=session.mismatch is None,
        predicted_error=plan.predicted_error if plan else (),
        plan=plan_to_json(plan) if plan else "",
        compute=as_text(plan.compute) if plan else "",
        sigmas=plan.sigmas if plan else (),
    )
