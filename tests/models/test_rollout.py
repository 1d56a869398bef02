"""The sampler against diffusers' own, and a rollout as a function of its seeds alone."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from builders import small_config
from marble_core.models.policy import Policy
from marble_core.models.sampling import make_scheduler, sample, solve
from marble_core.runtime.seeding import derive, noise

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
        for s, n in (("dpm2", 10), ("dpm2", 40), ("euler", 10), ("dpm2_nft", 10))
    }
    assert errors["dpm2", 40] < 0.05 * float(fine.std())
    assert errors["dpm2", 40] < errors["dpm2", 10] < errors["euler", 10]
    assert errors["dpm2_nft", 10] < errors["euler", 10]


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
