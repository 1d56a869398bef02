"""Guidance and the LoRA's strength are what plain diffusers makes of guidance_scale and set_adapters."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from builders import PROMPTS
from marble_core.config.loading import load_config
from marble_core.models.flux import Flux
from marble_core.models.guidance import Guided, why_unguided
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.models.sd3 import SD3
from marble_core.runtime.seeding import derive, noise
from tiny_models import save_flux, save_sd3

TEXTS = [prompt.text for prompt in PROMPTS]
SEEDS = [derive(1, i) for i in range(3)]
STEPS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_sd3(tmp_path_factory.mktemp("sd3"))


def config(path, *overrides):
    return load_config(
        "demo", overrides=[f"model.path={path}", "model.max_sequence_length=9", "lora.rank=4", "lora.alpha=8", *overrides]
    )


def plain(path, guidance, lora=None, strength=1.0):
    """Latents of diffusers alone."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(path, torch_dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(lora, adapter_name="marble")
        pipeline.set_adapters(["marble"], [strength])
    how = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": 64, "width": 64, "max_sequence_length": 9}
    return pipeline(TEXTS, latents=noise(SEEDS, (4, 16, 16)), output_type="latent", **how).images


def latents(model, batch_size=2):
    return sample(model, TEXTS, SEEDS, "euler", STEPS, batch_size)[0]


def saved_lora(path, directory):
    policy = Policy.load(config(path))
    policy.add_trainable(config(path))
    generator = torch.Generator().manual_seed(1)
    weights = {n: p + 0.1 * torch.randn(p.shape, generator=generator) for n, p in policy.parameters_of("default").items()}
    policy.save_adapter(directory, weights)


@pytest.mark.parametrize("guidance", [1.5, 4.5])
def test_guidance_is_that_of_diffusers_own_pipeline(tiny, guidance):
    model = SD3(config(tiny).model)
    found, theirs = latents(Guided(model, guidance)), plain(tiny, guidance)
    assert (found - theirs).abs().max() < 1e-4
    assert (found - latents(model)).abs().max() > 0.01, "guidance does something"


@pytest.mark.parametrize(("strength", "guidance"), [(0.5, 1.0), (1.25, 1.0), (0.75, 3.0)])
def test_a_lora_at_a_strength_is_that_of_set_adapters_and_whole_again_afterwards(tiny, tmp_path, strength, guidance):
    saved_lora(tiny, tmp_path)
    policy = Policy.load(config(tiny))
    policy.load_adapter(tmp_path)
    with policy.using("default") as model:
        whole = latents(model)
    with policy.using("default", strength) as model:
        found = latents(Guided(model, guidance) if guidance != 1 else model)
    assert (found - plain(tiny, guidance, tmp_path, strength)).abs().max() < 1e-4
    assert (found - whole).abs().max() > 0.01
    with policy.using("default") as model:
        assert torch.equal(latents(model), whole)


def test_the_empty_prompt_is_encoded_once_and_conditioning_needs_no_equal_prompts(tiny, monkeypatch):
    model, encoded = SD3(config(tiny).model), []
    encode = SD3.encode
    monkeypatch.setattr(SD3, "encode", lambda self, prompts: encoded.append(list(prompts)) or encode(self, prompts))
    guided = Guided(model, 2.0)
    one, other = latents(guided, batch_size=1), latents(guided, batch_size=3)
    assert encoded == [[""], TEXTS, TEXTS]
    assert np.abs(one.numpy() - other.numpy()).max() < 1e-4


def test_a_family_without_guidance_says_why_and_which_scale_a_pipeline_needs(tmp_path):
    chosen = config(save_flux(tmp_path), "model.family=marble_core.models.flux:Flux")
    flux = Flux(chosen.model)
    assert "reads its guidance scale as an input" in why_unguided(flux) and flux.guidance_scale == 3.5
    assert why_unguided(object()) == "" and SD3.guidance_scale == 1
