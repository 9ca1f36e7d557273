"""The sampler's response, probed in ComfyUI, against what real runs do."""

from __future__ import annotations

import itertools

import pytest
import torch


def schedule(wan, steps=12):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(wan.get_model_object("model_sampling"), "simple", steps)


def probe_named(wan, name, steps=12):
    import comfy.samplers

    from ertacache.comfy_erta.probing import sampler_response

    return sampler_response(comfy.samplers.sampler_object(name), schedule(wan, steps).double().numpy(), wan)


def sampler_names():
    return (
        "euler euler_ancestral heun heunpp2 dpm_2 dpm_2_ancestral lms dpm_fast dpmpp_2s_ancestral dpmpp_sde dpmpp_2m "
        "dpmpp_2m_sde dpmpp_3m_sde ddpm lcm ipndm ipndm_v deis res_multistep gradient_estimation er_sde "
        "seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"
    ).split()


@pytest.mark.parametrize("name", sampler_names())
def test_response_foresees_every_call(wan, sample, name):
    """Number of calls and their sigmas, as a real run makes them."""
    from ertacache.comfy_erta.run import attach

    class Watch:
        def begin(self, context):
            from ertacache.comfy_erta.task import Start

            self.response = context.respond(context.schedule)
            return Start(finish=self.finish)

        def finish(self, report, samples):
            self.report = report

    watch, sigmas = Watch(), []
    model = attach(wan, watch)
    import comfy.patcher_extension as extension

    def note(executor, x, timestep, *args, **kwargs):
        sigmas.append(float(timestep.reshape(-1)[0]))
        return executor(x, timestep, *args, **kwargs)

    model.add_wrapper_with_key(extension.WrappersMP.PREDICT_NOISE, "note", note)
    sample(model, sampler_name=name)
    assert watch.report.calls == watch.response.calls == len(sigmas)
    assert torch.allclose(torch.tensor(sigmas).double(), torch.from_numpy(watch.response.sigmas), rtol=1e-5)


@pytest.mark.parametrize("name", ["dpm_adaptive", "euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_what_cannot_be_foreseen_is_refused(wan, name):
    from ertacache.erta.response import UnknownResponse

    with pytest.raises(UnknownResponse):
        probe_named(wan, name)


def test_euler_response_is_the_step_lengths(wan):
    import numpy as np

    from ertacache.erta.planner import euler_response

    sigmas = schedule(wan).double().numpy()
    known, probed = euler_response(sigmas), probe_named(wan, "euler")
    np.testing.assert_allclose(probed.matrix, known.matrix, atol=1e-12)
    np.testing.assert_allclose(probed.sigmas, known.sigmas)


def test_a_sampler_that_asks_for_the_device_and_for_marks_on_the_model_is_probed(wan):
    """RES4LYF's do: they compute where the model does, and take what guides have left on its modules."""
    import comfy.samplers

    from ertacache.comfy_erta.probing import sampler_response

    def sample_elsewhere(model, x, sigmas, extra_args=None, callback=None, disable=None):
        base = model.inner_model.inner_model
        assert not hasattr(base.diffusion_model, "y0_standard_guide")
        for sigma, following in itertools.pairwise(sigmas):
            at = x.to(base.device)
            d = (at - model(at, sigma.expand(len(at)), **extra_args)) / sigma
            x = (at + d * (following - sigma)).to(x)
        return x

    sigmas = schedule(wan).double().numpy()
    found = sampler_response(comfy.samplers.KSAMPLER(sample_elsewhere), sigmas, wan)
    assert torch.allclose(torch.from_numpy(found.matrix), torch.from_numpy(probe_named(wan, "euler").matrix))


def test_probe_leaves_random_state_and_schedule_alone(wan):
    sigmas = schedule(wan)
    before, state = sigmas.clone(), torch.random.get_rng_state()
    for name in ("uni_pc", "dpmpp_2m_sde", "euler_ancestral"):
        probe_named(wan, name)
    assert torch.equal(sigmas, before)
    assert torch.equal(torch.random.get_rng_state(), state)
