"""A workflow that is saved from a run renders the same, to the bit, where the profile is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer


@pytest.fixture(scope="module")
def stranger(server: ComfyServer) -> Iterator[ComfyServer]:
    """Another machine: the pack and the model, but no profile."""
    from ertacache.tests.web.conftest import greet

    with ComfyServer() as other:
        greet(other)
        yield other


@pytest.fixture(scope="module")
def saved(profiled: ComfyServer, browser: Any, planned: dict[str, Any]) -> dict[str, Any]:
    """Files of a first run and of a second one that the server's cache served, and the latent of both."""
    from ertacache.tests.web.conftest import Tab

    tab = Tab(browser.new_page(), profiled.url)
    tab.drop("planned.json", planned)
    tab.set("seed", 4242)
    found = {}
    for turn in ("first", "cached"):
        tab.set("filename_prefix", f"shared/{turn}", "SaveAnimatedWEBP")
        tab.set("filename_prefix", f"shared/{turn}", "SaveLatent")
        served = tab.queue()
        assert ("5" in served) == (turn == "cached")
        shown = tab.outputs()
        (image,), (latent,) = (shown[key][kind] for key, kind in (("7", "images"), ("8", "latents")))
        found[f"{turn}.webp"] = profiled.client.view(**image)
        found[f"{turn}.latent"] = profiled.client.view(**latent)
    found["drawn.json"] = tab.workflow()
    found["reference"] = safetensors.torch.load(found["first.latent"])["latent_tensor"]
    tab.page.close()
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("drawn.json", "application/json"),
        ("first.webp", "image/webp"),
        ("cached.webp", "image/webp"),
        ("cached.latent", ""),
    ],
)
def test_a_dropped_file_renders_the_same(
    stranger: ComfyServer, open_tab: Callable[..., Any], saved: dict[str, Any], name: str, kind: str
):
    stranger.client._request("/free", {"unload_models": True, "free_memory": True})  # nothing from the run before
    tab = open_tab(stranger)
    tab.drop(name, saved[name], kind)
    assert tab.value("seed") == 4242
    tab.queue()
    tab.wait_for(".erta-headline", "25 of 50 evaluations computed")
    tab.wait_for(".erta-notes", "Plan carried by the workflow")
    (entry,) = tab.outputs()["8"]["latents"]
    latent = safetensors.torch.load(stranger.client.view(**entry))["latent_tensor"]
    assert torch.equal(latent, saved["reference"])
