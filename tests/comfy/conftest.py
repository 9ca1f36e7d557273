"""A tiny Wan with random weights in a real ComfyUI, and one call that samples with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Sample = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def wan(comfy_pack: ModuleType) -> Any:
    """ModelPatcher of ComfyUI's own Wan2.1 T2V architecture, 2 blocks of width 128, as its loader detects it."""
    return make_wan(torch.float32)


def make_wan(dtype: torch.dtype, blocks: int = 2) -> Any:
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(wan_weights(blocks), model_options={"dtype": dtype})


def wan_weights(blocks: int = 2, seed: int = 7) -> dict[str, torch.Tensor]:
    """Random weights of a Wan2.1 T2V of width 128."""
    import comfy.ldm.wan.model
    import comfy.ops

    generator = torch.Generator().manual_seed(seed)
    shape = comfy.ldm.wan.model.WanModel(
        dim=128, ffn_dim=128, num_heads=1, num_layers=blocks, text_dim=4096, operations=comfy.ops.disable_weight_init
    )
    weights = {
        name: torch.randn(value.shape, generator=generator) * (0.02 if value.ndim > 1 else 0.1)
        for name, value in shape.state_dict().items()
    }
    # A head that responds: with all weights this small the velocity would hardly depend on anything.
    weights["head.head.weight"] *= 10.0
    weights["patch_embedding.weight"] *= 5.0
    weights["time_projection.1.weight"] *= 3.0
    return weights


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a model this small several threads mostly wait for each other, on a busy machine for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def only_on_cpu(reason: str) -> None:
    """Skip the running test on a GPU (ERTA_TEST_DEVICE=cuda)."""
    import comfy.model_management

    if comfy.model_management.get_torch_device().type != "cpu":
        pytest.skip(reason)


@pytest.fixture(scope="session")
def conds() -> tuple[list[Any], list[Any]]:
    generator = torch.Generator().manual_seed(3)
    return tuple([[torch.randn(1, 4, 4096, generator=generator), {}]] for _ in range(2))  # type: ignore[return-value]


@pytest.fixture(scope="session")
def sample(wan: Any, conds: tuple[list[Any], list[Any]]) -> Sample:
    """sample(model=None, steps=12, sampler="euler", ...) -> the final latent, through ComfyUI's common_ksampler."""

    def call(model: Any = None, **changed: Any) -> torch.Tensor:
        import nodes

        latent = changed.pop("latent", {"samples": torch.zeros(1, 16, 2, 4, 4)})
        inputs = {
            "seed": 5,
            "steps": 12,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": conds[0],
            "negative": conds[1],
            "denoise": 1.0,
            **changed,
        }
        result: torch.Tensor = nodes.common_ksampler(model or wan, latent=latent, **inputs)[0]["samples"]
        return result

    return call


@pytest.fixture
def store(comfy_pack: ModuleType, tmp_path: Path) -> Any:
    from ertacache.comfy_erta.store import Store

    return Store(tmp_path / "profiles")
