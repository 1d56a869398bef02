"""Gradient checkpointing, float16, bfloat16 and float64: the same gradients, as far as the precision allows."""

from collections import Counter

import numpy as np
import pytest
import torch

from builders import SmallModel, random_advantages, small_config, small_policy, small_rollout
from marble_core.algorithm import backward
from marble_core.algorithm.row_gradients import Pass, RowGradients
from marble_core.algorithm.split_half import split
from oracles import autograd_gradient, relative_error

K = 5


def gradients_of(policy, config):
    rollout = small_rollout(policy, config)
    rows = backward.reward_rows(random_advantages(len(rollout.batch), K), split(rollout.batch), config.loss.timesteps)
    return rollout, backward.per_reward(policy, rollout, rows, config.loss)


def each_reward(done):
    return [done.gradients.combine(np.eye(2 * K + 1)[k] + np.eye(2 * K + 1)[K + k]) for k in range(K)]


def test_with_checkpointing_the_gradients_are_the_same_and_each_block_is_recomputed_once_for_both_passes():
    config = small_config()
    plain = small_policy(config, perturb=0.05)
    _, without = gradients_of(plain, config)
    saving = small_policy(config, perturb=0.05)
    saving.checkpointing = True
    calls = Counter()
    for n, block in enumerate(saving.transformer.transformer_blocks):
        block.register_forward_hook(lambda *_, n=n: calls.update([n]))
    _, within = gradients_of(saving, config)
    for ours, theirs in zip(each_reward(within), each_reward(without), strict=True):
        assert all((g == 0).all() for g in theirs.values()) or relative_error(ours, theirs) < 1e-6
    micro_batches = 2 * config.loss.timesteps
    assert within.backwards == without.backwards == 3 * micro_batches
    assert set(calls.values()) == {4 * micro_batches}, "v_old, v_ref, v, and one recompute for three cotangents"


def test_one_backward_is_the_weighted_sum_to_1e_10_in_float64():
    """Images that no weighted reward applies to included."""
    config = small_config()
    policy = small_policy(config, perturb=0.05, model=SmallModel(torch.float64))
    rollout = small_rollout(policy, config)
    rows = backward.reward_rows(random_advantages(len(rollout.batch), K), split(rollout.batch), config.loss.timesteps)
    w_K = np.array([0.0, 0.7, 0.0, 0.3, 0.0])
    w_J = np.concatenate([w_K, w_K])
    apart = backward.per_reward(policy, rollout, rows, config.loss).gradients.combine(np.append(w_J, 1.0))
    together = backward.weighted_sum(policy, rollout, rows, w_J, config.loss).gradients.combine(np.ones(1))
    assert next(iter(apart.values())).dtype == torch.float64
    assert relative_error(together, apart) < 1e-10


def test_in_bf16_the_gradients_are_no_further_from_fp32_than_a_plain_backwards():
    config = small_config()
    exact = small_policy(config, perturb=0.05)
    rounded = small_policy(config, perturb=0.05, model=SmallModel(autocast=torch.bfloat16))
    _, reference = gradients_of(exact, config)
    rollout, ours = gradients_of(rounded, config)
    advantages = random_advantages(len(rollout.batch), K)
    for k in (0, 3, 4):
        weight_N = advantages.mask_NK[:, k] / advantages.count_K[k] / config.loss.timesteps
        plain = autograd_gradient(rounded, rollout, config, weight_N, advantages.A_NK[:, k])
        distance = relative_error(each_reward(ours)[k], each_reward(reference)[k])
        assert distance <= 1.5 * relative_error(plain, each_reward(reference)[k])


@pytest.mark.parametrize("size", [1e-9, 4e-6, 1.0, 1e6])
def test_in_fp16_a_cotangent_of_any_size_loses_nothing(size):
    """On SD3.5-Medium q1 is about 4e-6, which float16 rounds by percents, and q0 below its smallest number."""
    config = small_config()
    policies = [small_policy(config, perturb=0.05, model=SmallModel(autocast=a)) for a in (None, torch.float16)]
    totals = []
    for policy in policies:
        rows = RowGradients(policy.layers_of("default"), 1)
        q = size * torch.randn(6, *policy.model.latent_shape, generator=torch.Generator().manual_seed(3))
        with policy.using("default") as model, rows.capturing():
            x = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(4))
            conditioning = model.encode([f"prompt {i}" for i in range(6)])
            v = model.velocity(x, torch.full((6,), 0.5), conditioning)
            rows.backward(v, [Pass(q, torch.ones(1, 6))])
        totals.append(rows.combine(np.ones(1)))
    assert relative_error(totals[1], totals[0]) < 0.01


@pytest.mark.parametrize(("checkpointing", "size"), [(False, 1.0), (True, 1.0), (False, 2.0**20)])
def test_an_overflow_repeats_the_pass_at_half_the_scale_for_the_layers_that_saw_it(checkpointing, size):
    config = small_config()
    policy = small_policy(config, perturb=0.05, model=SmallModel(autocast=torch.float16))
    results = []
    for boost in (0, 15):
        rows = RowGradients(policy.layers_of("default"), 1, policy.transformer if checkpointing else None)
        with policy.using("default") as model, rows.capturing():
            x = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(4))
            conditioning = model.encode([f"prompt {i}" for i in range(6)])
            v = model.velocity(x, torch.full((6,), 0.5), conditioning)
            one = Pass(size * torch.randn(v.shape, generator=torch.Generator().manual_seed(3)), torch.ones(1, 6))
            one.scale *= 2.0**boost
            rows.backward(v, [one])
        results.append((rows.backwards, rows.combine(np.ones(1))))
    assert results[0][0] == 1 and results[1][0] > 1
    assert relative_error(results[1][1], results[0][1]) < 0.01


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_what_is_not_a_number_shows_in_the_gradient_whatever_the_precision(autocast):
    policy = small_policy(small_config(), perturb=0.05, model=SmallModel(autocast=autocast))
    rows = RowGradients(policy.layers_of("default"), 1)
    with policy.using("default") as model, rows.capturing():
        conditioning = model.encode(["a", "b"])
        x = torch.full((2, *model.latent_shape), 0.1)
        v = model.velocity(x, torch.full((2,), 0.5), conditioning)
        rows.backward(v, [Pass(torch.full_like(v, torch.nan), torch.ones(1, 2))])
    assert not all(torch.isfinite(g).all() for g in rows.combine(np.ones(1)).values())
