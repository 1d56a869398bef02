"""The KL at noised images of the base, and its weight by time, against one ordinary backward."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import learner, prompts, small_config, small_policy, small_rollout, weights
from marble_core.algorithm.advantages import Advantages
from marble_core.algorithm.backward import per_reward, reward_rows, weighted_sum
from marble_core.checkpoints import CheckpointStore
from marble_core.config.loading import load_config
from marble_core.models.rollout import beside_base
from marble_core.runtime.seeding import derive, noise
from marble_core.training import loop
from marble_core.types import MarbleError
from oracles import autograd_gradient, relative_error, written_pairs


def written_kl(policy, rollout, config):
    """Of every (image, time) that carries the KL, w(t) mean |v - v_ref|^2 at an image of the base, in one backward a draw."""
    default, loss, base = policy.parameters_of("default"), config.loss, rollout.base
    total = {n: torch.zeros_like(p) for n, p in default.items()}
    step, seed, N = rollout.batch.step, rollout.batch.seed, len(rollout.batch)
    conditioning = base.conditioning[[i // config.rollout.images_per_prompt for i in range(N)]]
    for j, (_, t_N, kl_N) in enumerate(written_pairs(seed, step, rollout.x0_NCHW, rollout.t_S, loss)):
        generators = [torch.Generator().manual_seed(derive(seed, "base eps", step, i, j)) for i in range(N)]
        eps = torch.stack([torch.randn(base.x0_NCHW.shape[1:], generator=g) for g in generators])
        t = t_N[:, None, None, None]
        x_t = (1 - t) * base.x0_NCHW + t * eps
        with policy.using("off") as model, torch.no_grad():
            v_ref = model.velocity(x_t, t_N, conditioning)
        with policy.using("default") as model:
            for p in default.values():
                p.requires_grad_(True)
            v = model.velocity(x_t, t_N, conditioning)
        by_time = (1 + loss.kl_power) * t_N**loss.kl_power
        each = by_time * (v - v_ref).pow(2).mean((1, 2, 3))
        loss_ = (loss.kl_beta * torch.as_tensor(kl_N).float() * each).sum()
        for n, g in zip(default, torch.autograd.grad(loss_, list(default.values())), strict=True):
            total[n] += g
    for p in default.values():
        p.requires_grad_(False)
    return total


def case(*overrides):
    config = small_config("loss.kl_beta=0.3", *overrides)
    policy = small_policy(config, perturb=0.05)
    rollout = small_rollout(policy, config)
    other = replace(rollout, x0_NCHW=noise([derive(8, i) for i in range(len(rollout.batch))], policy.model.latent_shape))
    conditioning = policy.model.encode(["one base prompt", "another", "a third"])
    rollout = replace(rollout, base=replace(other, conditioning=conditioning))
    N = len(rollout.batch)
    advantages = Advantages(np.random.default_rng(0).normal(size=(N, 2)), np.ones((N, 2), bool), np.zeros(N))
    return config, policy, rollout, reward_rows(advantages, None, config.loss.timesteps)


@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("power", [0.0, 1.5])
def test_the_forward_kls_gradient_is_that_of_autograd_and_changes_no_rewards(fraction, power):
    config, policy, rollout, rows = case("loss.kl_states=base", f"loss.kl_power={power}", f"loss.kl_fraction={fraction}")
    passes = per_reward(policy, rollout, rows, config.loss)
    plain = per_reward(policy, replace(rollout, base=None), rows, config.loss)
    truth = written_kl(policy, rollout, config)
    found = passes.gradients.combine(np.array([0.0, 0.0, 1.0]))
    assert relative_error(found, truth) < 1e-5
    for k in range(2):
        one = [p.gradients.combine(np.eye(3)[k]) for p in (passes, plain)]
        assert relative_error(*one) < 1e-6
    together = weighted_sum(policy, rollout, rows, np.array([0.3, 0.7]), config.loss).gradients.combine(np.ones(1))
    assert relative_error(together, passes.gradients.combine(np.array([0.3, 0.7, 1.0]))) < 1e-5


def test_the_weight_by_time_is_that_of_autograd_at_images_of_the_policy_too():
    config, policy, rollout, rows = case("loss.kl_power=2")
    rollout = replace(rollout, base=None)
    found = per_reward(policy, rollout, rows, config.loss).gradients.combine(np.array([0.0, 0.0, 1.0]))
    assert relative_error(found, written_kl(policy, replace(rollout, base=rollout), config)) > 0.1, (
        "another noise is another KL"
    )
    even = autograd_gradient(policy, rollout, small_config("loss.kl_beta=0.3"), None, None, kl=True)
    assert relative_error(found, even) > 0.1
    flat = per_reward(policy, rollout, rows, config.loss.model_copy(update={"kl_power": 0.0}))
    assert relative_error(flat.gradients.combine(np.array([0.0, 0.0, 1.0])), even) < 1e-5


def test_the_bases_images_are_those_of_no_lora_and_the_same_in_every_step():
    config = small_config("loss.kl_states=base", "rollout.solver=euler")
    policy = small_policy(config, perturb=0.5)
    rollout = small_rollout(policy, config)
    first = beside_base(rollout, policy, prompts(), config).base
    policy.copy("default", "old")
    again = beside_base(small_rollout(policy, config), policy, prompts()[::-1], config).base
    assert again is first and len(first.x0_NCHW) == len(rollout.batch)
    other = small_policy(config)
    fresh = beside_base(small_rollout(other, config), other, prompts(), config).base
    assert torch.equal(fresh.x0_NCHW, first.x0_NCHW), "the LoRA is off"
    assert {p.source for p in first.batch.prompts} == {"general", "ocr", "geneval"}
    assert beside_base(rollout, policy, prompts(), small_config()) is rollout


def test_a_run_with_the_forward_kl_goes_on_to_the_same_bits(tmp_path):
    overrides = ("train.steps=3", "loss.kl_states=base", "loss.kl_power=1", "loss.kl_beta=0.1")
    whole = learner(*overrides)
    loop.train(whole, prompts(), CheckpointStore(tmp_path / "whole", None, "run"), lambda _: None)
    plain = learner("train.steps=3", "loss.kl_beta=0.1")
    loop.train(plain, prompts(), CheckpointStore(tmp_path / "plain", None, "run"), lambda _: None)
    assert not all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(plain).values(), strict=True))

    def stop(report):
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(learner(*overrides), prompts(), CheckpointStore(tmp_path / "parts", None, "run"), stop)
    resumed = learner(*overrides)
    loop.train(resumed, prompts(), CheckpointStore(tmp_path / "parts", None, "run"), lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_settings_of_a_kl_that_is_off_are_one_sentence():
    with pytest.raises(MarbleError, match="so they need a"):
        load_config("demo", overrides=["loss.kl_beta=0", "loss.kl_states=base"])
