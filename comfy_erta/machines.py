"""The ComfyUI server that a run belongs to, if to any, and whether other machines render the same prompt."""

import sys
from typing import Any


def running_server() -> Any:
    """ComfyUI's, or None: nodes also run without one. Where one runs it is loaded, elsewhere it may not load."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def several_machines() -> bool:
    """Whether the prompt that runs now was sent by ComfyUI-Distributed to more machines than this one.

    It is asked at each run: a patched model may come from ComfyUI's cache, where it is from another prompt.
    """
    queue = getattr(running_server(), "prompt_queue", None)
    running = list(queue.currently_running.values()) if queue else ()
    return any(_is_shared(node.get("inputs")) for _, _, prompt, *_ in running for node in prompt.values())


def _is_shared(inputs: Any) -> bool:
    """By what it writes into its own nodes: the job, and the workers that take part; or any one of them may do it."""
    if not isinstance(inputs, dict) or not inputs.get("multi_job_id"):
        return False
    return inputs.get("enabled_worker_ids") != "[]" or bool(inputs.get("load_balance"))
