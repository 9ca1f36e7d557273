"""Processes that share a store, and processes without a server: the lines of docs/compatibility/several_machines.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ertacache.erta.settings import Settings
from ertacache.tests.comfy.conftest import Sample, only_on_cpu
from ertacache.tests.comfy.traps import codes

ROOT = Path(__file__).resolve().parents[2]


def record(sample: Sample, wan: Any, store: Any, seed: int = 5) -> list[str]:
    """Render once with a store; the codes of the report's notes."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports: list[Any] = []
    sample(attach(wan, Caching(Settings(), store, reports.append)), seed=seed)
    return codes(reports[-1])


def test_a_profile_that_another_process_kept_during_the_run_is_enough(sample: Sample, wan: Any, store: Any) -> None:
    class Late(type(store)):  # type: ignore[misc]
        """Sees what is there when it is asked for the second time."""

        def headers(self) -> list[Any]:
            looks.append(super().headers())
            return looks[-1] if len(looks) > 1 else []

    looks: list[Any] = []
    assert record(sample, wan, store)[-1] == "recorded"
    assert record(sample, wan, Late(store.user_dir), seed=6) == ["recording_first", "recorded_elsewhere"]
    assert len(store.names()) == 1


def test_of_two_processes_that_save_at_the_same_moment_one_profile_is_left(
    sample: Sample, wan: Any, store: Any, tmp_path: Path
) -> None:
    class Racing(type(store)):  # type: ignore[misc]
        """Just after it has looked, and has seen nothing, the other process saves."""

        def headers(self) -> list[Any]:
            looks.append(super().headers())
            if len(looks) == 2:
                store.save(store.unique_name(name), other.load(name))
            return looks[-1]

    looks: list[Any] = []
    other = type(store)(tmp_path / "other")
    record(sample, wan, other)
    (name,) = other.names()
    assert record(sample, wan, Racing(store.user_dir), seed=6)[-1] == "recorded"
    assert looks == [[], []] and store.names() == [name]


# One rank: the lines of the page, and a model of which the other rank has the other half. Each forward waits for both
# halves, so a rank that went another way would hang.
RANK = """
import json, sys
from pathlib import Path
import port

root, here, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
port.load(root)
from ertacache.demo.comfyui import import_comfy
import_comfy(cpu=True)

import comfy.sample, safetensors.torch, torch
import torch.distributed as ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from ertacache.tests.comfy.conftest import make_wan

ranks.init_process_group("gloo", init_method=f"file://{here}/meeting", rank=rank, world_size=2)

wan = make_wan(torch.float32)
fully_shard(wan.model.diffusion_model, mesh=init_device_mesh("cpu", (2,)))
latent, conds = torch.zeros(1, 16, 2, 4, 4), torch.load(here / "conds.pt")
noise = comfy.sample.prepare_noise(latent, 5)

def render(model):
    return comfy.sample.sample(model, noise, 12, 3.0, "euler", "simple", *conds, latent, denoise=1.0, seed=5)

kept, reports = [], []
latents = {"full": render(port.recording(wan, reports, rank, kept.append))}
files = [*kept, None][:1]
ranks.broadcast_object_list(files)
latents["profile"] = render(port.cached(wan, reports, profile=files[0], speed=2.0))
latents["plan"] = render(port.cached(wan, reports, reports[-1].plan, speed=2.0))
latents["built in"] = render(port.cached(wan, reports, speed=2.0))
safetensors.torch.save_file(latents, here / f"{rank}.safetensors")
found = {"reports": [report.as_dict() for report in reports], "kept": len(kept), "server": "server" in sys.modules}
(here / f"{rank}.json").write_text(json.dumps(found))
"""


def test_ranks_without_a_server_go_the_same_way(
    sample: Sample, conds: Any, wan: Any, comfy_path: Path, tmp_path: Path
) -> None:
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    only_on_cpu("two processes on one GPU are another test")
    page = (ROOT / "docs" / "compatibility" / "several_machines.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "port.py").write_text(lines, encoding="utf-8")
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")
    torch.save(conds, tmp_path / "conds.pt")
    command = [sys.executable, str(tmp_path / "rank.py"), str(ROOT), str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        for one in started:
            _, said = one.communicate(timeout=240)
            assert one.returncode == 0, said
    finally:
        for one in started:
            one.kill()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    first, second = (safetensors.torch.load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["full"], sample()) and torch.equal(first["plan"], first["profile"])
    alone = sample(attach(wan, Caching(Settings(), None, lambda report: None)))
    assert torch.equal(first["built in"], alone) and not torch.equal(alone, first["profile"])
    assert [one["kept"] for one in found] == [1, 0] and not any(one["server"] for one in found)
    assert [report["reused"] for report in found[1]["reports"]] == [0, 6, 6, 6]
