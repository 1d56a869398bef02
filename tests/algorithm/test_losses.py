"""Each loss's terms against autograd of the loss as its paper writes it, in float64."""

import numpy as np
import pytest
import torch

from builders import small_config
from marble_core.algorithm.losses import LOSSES, Point, kl, noisy
from marble_core.config.loss import LossConfig
from marble_core.types import MarbleError

ADVANTAGES = np.array([1.3, -0.7, 0.0, 4.9])
T = torch.tensor([1.0, 0.75, 0.5, 0.1], dtype=torch.float64)


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    v, v_old, x0, eps = (torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(4))
    return v, v + 0.3 * v_old, x0, noisy(x0, eps, T)


def nft_as_written(v, v_old, x0, x, A, config):
    def part(velocity):
        error = x - T[:, None, None, None] * velocity - x0
        return (error**2 / error.detach().abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-5)).mean((1, 2, 3))

    b, a_max = config.beta, config.advantage_max
    r = 0.5 + A / (2 * a_max)
    return a_max * (r * part(v_old + b * (v - v_old)) + (1 - r) * part(v_old - b * (v - v_old))) / b


def awm_as_written(v, v_old, x0, x, A, config):
    return A * (v - (x - x0) / T[:, None, None, None]).pow(2).mean((1, 2, 3))


def awm_clipped_as_written(v, v_old, x0, x, A, config):
    target = (x - x0) / T[:, None, None, None]
    old, new = ((u - target).pow(2).mean((1, 2, 3)) for u in (v_old, v))
    rho = (old - new).exp()
    return -torch.minimum(rho * A, rho.clamp(1 - config.clip_range, 1 + config.clip_range) * A)


WRITTEN = {"nft": nft_as_written, "awm": awm_as_written, "awm_clipped": awm_clipped_as_written}


@pytest.mark.parametrize("name", LOSSES)
def test_the_terms_of_a_loss_are_its_gradient_for_any_advantage(name):
    config = LossConfig(name=name)
    v, v_old, x0, x = draws()
    for A in (ADVANTAGES, -ADVANTAGES):
        leaf = v.clone().requires_grad_(True)
        (theirs,) = torch.autograd.grad(WRITTEN[name](leaf, v_old, x0, x, torch.tensor(A), config).sum(), leaf)
        terms = LOSSES[name](Point(v, v_old, x, x0, T), config)
        ours = sum(torch.tensor(term.phi(A))[:, None, None, None] * term.q_BCHW for term in terms)
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-14)


def test_within_the_clip_range_the_clipped_form_pulls_by_the_ratio():
    config, (v, _, x0, x) = LossConfig(name="awm_clipped", clip_range=0.5), draws()
    for change in (-0.02, 0.02):  # of the velocity: ratios on both sides of 1, and within the range
        leaf = v.clone().requires_grad_(True)
        loss = awm_clipped_as_written(leaf, (1 + change) * v, x0, x, torch.tensor(ADVANTAGES), config)
        (theirs,) = torch.autograd.grad(loss.sum(), leaf)
        terms = LOSSES["awm_clipped"](Point(v, (1 + change) * v, x, x0, T), config)
        ours = sum(torch.tensor(term.phi(ADVANTAGES))[:, None, None, None] * term.q_BCHW for term in terms)
        pulled = theirs[ADVANTAGES != 0].abs().amax((1, 2, 3))
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-14) and (pulled > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_where_old_equals_default_one_term_is_left_and_says_the_same(name):
    config = LossConfig(name=name)
    v, _, x0, x = draws()
    (only,) = LOSSES[name](Point(v, None, x, x0, T), config)
    full = LOSSES[name](Point(v, v, x, x0, T), config)
    A = ADVANTAGES
    both = sum(torch.tensor(term.phi(A))[:, None, None, None] * term.q_BCHW for term in full)
    assert torch.allclose(torch.tensor(only.phi(A))[:, None, None, None] * only.q_BCHW, both, rtol=1e-13)
    if name == "nft":
        assert (full[1].q_BCHW == 0).all(), "L+ equals L- to the last bit"


def test_clipping_stops_images_that_have_gone_far_enough():
    config = LossConfig(name="awm_clipped", clip_range=0.01)
    near, far, x0, x = draws()
    closer = torch.tensor([True, False, True, False])[:, None, None, None]
    v, v_old = torch.where(closer, near, far), torch.where(closer, far, near)
    up, down = LOSSES["awm_clipped"](Point(v, v_old, x, x0, T), config)
    stopped = [(term.q_BCHW == 0).all(dim=(1, 2, 3)) for term in (up, down)]
    assert stopped[0].tolist() == [True, False, True, False]
    assert stopped[1].tolist() == [False, True, False, True]


def test_the_cotangent_of_the_kl_is_its_gradient():
    v, v_ref, _, _ = draws()
    leaf = v.clone().requires_grad_(True)
    (theirs,) = torch.autograd.grad((leaf - v_ref).pow(2).mean((1, 2, 3)).sum(), leaf)
    assert torch.allclose(kl(v, v_ref), theirs, rtol=1e-13)


def test_a_loss_that_is_unbounded_below_needs_the_kl():
    with pytest.raises(MarbleError, match=r"loss\.kl_beta must be above 0"):
        small_config("loss.name=awm", "loss.kl_beta=0")
