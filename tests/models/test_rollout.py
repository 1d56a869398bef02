"""The sampler against diffusers' own, and a rollout as a function of its seeds alone."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from builders import PROMPTS as ONE_A_SOURCE
from builders import SmallModel, small_config, small_policy
from marble_core.models.policy import Policy
from marble_core.models.rollout import collect
from marble_core.models.sampling import make_scheduler, sample, solve
from marble_core.runtime.seeding import derive, noise
from marble_core.types import PromptBatch
from oracles import relative_error

PROMPTS = ["a red circle", "two blue squares", "yellow and green stripes"]


@pytest.fixture(scope="module")
def policy():
    return Policy.load(small_config())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_solver_walks_the_shifted_flow_sigmas(shift):
    """DPMSolver's from_config would drop ``shift``; both schedulers must bend the same straight line of times."""
    sigmas = make_scheduler("dpm2", 8, shift).sigmas[:-1].double().numpy()
    straight = np.linspace(sigmas[0] / (shift - (shift - 1) * sigmas[0]), 0, 9)[:-1]
    assert np.allclose(sigmas, shift * straight / (1 + (shift - 1) * straight), atol=2e-4)
    flow = FlowMatchEulerDiscreteScheduler(shift=shift)
    flow.set_timesteps(sigmas=straight.tolist())
    assert np.allclose(sigmas, flow.sigmas[:-1].numpy(), atol=2e-4)


def test_the_released_grid_is_the_flow_match_schedulers():
    """25 steps at SD3's shift of 3: the numbers that DiffusionNFT's sampler walks, and ours, which end further from 0."""
    theirs, ours = (make_scheduler(solver, 25, 3.0).sigmas for solver in ("dpm2_nft", "dpm2"))
    assert len(theirs) == len(ours) == 26
    assert theirs[0] == 1.0 and torch.allclose(theirs[-4:], torch.tensor([0.2203, 0.1227, 0.0089, 0.0]), atol=5e-5)
    assert torch.allclose(ours[-3:], torch.tensor([0.2067, 0.1110, 0.0]), atol=5e-5)
    straight = np.linspace(1000, 3 * 1 / (1 + 2 * 0.001), 25) / 1000  # its own least sigma is shifted once before
    assert np.allclose(theirs[:-1].numpy(), 3 * straight / (1 + 2 * straight), atol=1e-5)


def test_the_solver_agrees_with_euler_of_many_steps(policy):
    model = policy.model
    conditioning = model.encode(PROMPTS)
    x_T = noise([derive(0, i) for i in range(3)], model.latent_shape)
    fine, _ = solve(model, x_T, conditioning, "euler", 250)
    errors = {
        (s, n): float((solve(model, x_T, conditioning, s, n)[0] - fine).pow(2).mean().sqrt())
        for s, n in (("dpm2", 10), ("dpm2", 40), ("euler", 10), ("dpm2_nft", 10), ("dpm2_nft", 40))
    }
    assert errors["dpm2", 40] < 0.05 * float(fine.std())
    assert errors["dpm2", 40] < errors["dpm2", 10] < errors["euler", 10]
    assert errors["dpm2", 40] < errors["dpm2_nft", 40] < errors["dpm2_nft", 10], (
        "the released grid converges, and ours is closer"
    )


def test_sampling_equals_diffusers_own_pipeline(policy):
    seeds = [derive(1, i) for i in range(3)]
    _, images, _, _ = sample(policy.model, PROMPTS, seeds, "euler", 6, batch_size=3)
    pipeline = policy.model.pipeline
    theirs = pipeline(
        PROMPTS, latents=noise(seeds, policy.model.latent_shape), num_inference_steps=6, guidance_scale=1.0,
        height=64, width=64, max_sequence_length=1, output_type="np",
    ).images  # fmt: skip
    assert np.abs(images.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_an_image_depends_on_its_own_seed_alone(policy):
    seeds = [derive(2, i) for i in range(6)]
    all_at_once = sample(policy.model, PROMPTS, seeds, "dpm2", 3, batch_size=6)[0]
    in_pieces = sample(policy.model, PROMPTS, seeds, "dpm2", 3, batch_size=4)[0]
    assert torch.allclose(all_at_once, in_pieces, atol=1e-4)
    assert not torch.allclose(all_at_once[0], all_at_once[1])


def forwards_of_the_lora(policy, names):
    """A list that grows with every forward of an adapter's layers."""
    seen = []
    for name in names:
        for layer in policy.layers_of(name).values():
            layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


def velocity(model):
    return model.velocity(noise([1, 2], model.latent_shape).to(model.dtype), torch.full((2,), 0.6), model.encode(PROMPTS[:2]))


def test_a_merged_lora_gives_the_velocity_that_it_gives_apart_without_a_forward_of_its_own():
    policy = small_policy(small_config(), perturb=0.1)
    seen = forwards_of_the_lora(policy, ["default", "old"])
    with policy.using("old") as model:
        apart = velocity(model)
    assert set(seen) == {"old"}
    seen.clear()
    with policy.merged("old") as model:
        merged = velocity(model)
    assert not seen and relative_error({"v": merged}, {"v": apart}) < 1e-5
    with policy.using("off") as model:
        assert relative_error({"v": velocity(model)}, {"v": apart}) > 0.01, "the LoRA does something"


def test_the_frozen_weights_are_the_same_bits_after_a_merge_that_was_broken_off():
    policy = small_policy(small_config(), perturb=0.1)
    before = {name: p.clone() for name, p in policy.transformer.named_parameters()}
    with pytest.raises(KeyboardInterrupt), policy.merged("old"):
        assert not all(torch.equal(p, before[name]) for name, p in policy.transformer.named_parameters())
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[name]) for name, p in policy.transformer.named_parameters())


def test_a_lora_is_not_merged_into_weights_that_would_round_it():
    policy = small_policy(small_config(), perturb=0.1, model=SmallModel(torch.bfloat16, autocast=torch.bfloat16))
    seen = forwards_of_the_lora(policy, ["old"])
    with policy.using("old") as model:
        apart = velocity(model)
    count = len(seen)
    with policy.merged("old") as model:
        assert torch.equal(velocity(model), apart)
    assert count and len(seen) == 2 * count


def test_a_rollout_samples_without_a_forward_of_the_lora():
    """A quarter of the sampling's time on a CPU."""
    config = small_config()
    policy = small_policy(config, perturb=0.1)
    seen = forwards_of_the_lora(policy, ["default", "old"])
    batch = PromptBatch(ONE_A_SOURCE, 2, 0, 0)
    assert len(collect(policy, batch, config.rollout).images_NHWC) == 6 and not seen


def test_a_large_batch_is_decoded_in_parts_whose_upsampling_keeps_channels_last(policy):
    """diffusers gives the layout up from 64 images on; the decoder is then a third slower on a CPU."""
    model = policy.model
    sizes, layouts = [], []

    def look(_, inputs, __):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    hooks = [model.vae.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))]
    after = [block.upsamplers[0].conv for block in model.vae.decoder.up_blocks if block.upsamplers]
    hooks += [conv.register_forward_hook(look) for conv in after]
    assert len(model.decode(noise(range(80), model.latent_shape))) == 80
    assert sizes == [36, 36, 8] and layouts == [True] * 3 * len(after)
    for hook in hooks:
        hook.remove()
