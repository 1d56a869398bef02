"""Two backward passes against the slow and obvious road: one autograd backward of the written-out loss for each reward."""

import numpy as np
import pytest
import torch
from torchjd.autojac import jac

from builders import random_advantages, small_config, small_policy, small_rollout
from marble_core.algorithm import backward
from marble_core.algorithm.backward import kl_carriers, reward_rows
from marble_core.algorithm.split_half import split
from oracles import autograd_gradient, relative_error, written_loss, written_pairs


@pytest.fixture(scope="module", params=[0.0, 0.05], ids=["old equals default", "old far behind default"])
def setting(request):
    config = small_config("loss.timesteps=3")
    policy = small_policy(config, request.param)
    return config, policy, small_rollout(policy, config)


@pytest.mark.parametrize("K", [1, 2, 5, 17])
def test_two_backward_passes_give_every_reward_gradient(setting, K):
    config, policy, rollout = setting
    N, T = len(rollout.batch), config.loss.timesteps
    advantages = random_advantages(N, K)
    done = backward.per_reward(policy, rollout, reward_rows(advantages, split(rollout.batch), T), config.loss)
    for k in {0, 1, 2, K - 1} & set(range(K)):
        pick = np.zeros(2 * K + 1)
        pick[[k, K + k]] = 1
        ours = done.gradients.combine(pick)
        if not advantages.mask_NK[:, k].any():
            assert all((g == 0).all() for g in ours.values())
            continue
        weight_N = advantages.mask_NK[:, k] / advantages.count_K[k] / T
        theirs = autograd_gradient(policy, rollout, config, weight_N, advantages.A_NK[:, k])
        assert relative_error(ours, theirs) < 1e-5


def test_torchjd_finds_the_same_gradients(setting):
    """Its Jacobian of the K written-out losses: another library's way through autograd."""
    config, policy, rollout = setting
    T, K = config.loss.timesteps, 5
    advantages, default = random_advantages(len(rollout.batch), K), policy.parameters_of("default")
    theirs = {n: torch.zeros(K, *p.shape) for n, p in default.items()}
    x0, batch = rollout.x0_NCHW, rollout.batch
    conditioning = rollout.conditioning[batch.prompt_N]
    A_NK = torch.as_tensor(advantages.A_NK, dtype=x0.dtype)
    weight_NK = torch.as_tensor(advantages.mask_NK / np.maximum(advantages.count_K, 1) / T, dtype=x0.dtype)
    for x_t, t_N, _ in written_pairs(batch.seed, batch.step, x0, rollout.t_S, config.loss):
        with policy.using("old") as model, torch.no_grad():
            v_old = model.velocity(x_t, t_N, conditioning)
        with policy.using("default") as model:
            for p in default.values():
                p.requires_grad_(True)
            v = model.velocity(x_t, t_N, conditioning)
        losses = [(weight_NK[:, k] * written_loss(v, v_old, x_t, x0, t_N, A_NK[:, k], config.loss)).sum() for k in range(K)]
        jacobian = jac(losses, list(default.values()), parallel_chunk_size=1)
        for n, J in zip(default, jacobian, strict=True):
            theirs[n] += J
    for p in default.values():
        p.requires_grad_(False)
    ours = backward.per_reward(policy, rollout, reward_rows(advantages, None, T), config.loss).gradients
    for k in range(K):
        if advantages.mask_NK[:, k].any():
            assert relative_error(ours.combine(np.eye(K + 1)[k]), {n: J[k] for n, J in theirs.items()}) < 1e-5


def test_training_times_between_the_solvers_reach_below_its_last():
    t_S, config = torch.tensor([1.0, 0.7, 0.4, 0.1]), small_config("loss.timesteps=4", "loss.times=between").loss
    t_NT = torch.stack([backward._training_times(t_S, config, seed=0, step=0, image=i) for i in range(2000)])
    sorted_NT = t_NT.sort(dim=1, descending=True).values
    assert (sorted_NT <= t_S).all() and (sorted_NT > torch.tensor([0.7, 0.4, 0.1, 0.0])).all(), "one in each interval"
    assert torch.allclose(sorted_NT.mean(0), torch.tensor([0.85, 0.55, 0.25, 0.05]), atol=0.01), "uniform in it"
    at = backward._training_times(t_S, small_config("loss.timesteps=4").loss, seed=0, step=0, image=7)
    assert sorted(at.tolist(), reverse=True) == t_S.tolist()


def test_the_kl_has_a_row_of_its_own_that_no_reward_enters(setting):
    config, policy, rollout = setting
    advantages = random_advantages(len(rollout.batch), 2)
    done = backward.per_reward(policy, rollout, reward_rows(advantages, split(rollout.batch), 3), config.loss)
    ours = done.gradients.combine(np.eye(5)[4])
    theirs = autograd_gradient(policy, rollout, config, np.zeros(6), np.zeros(6), kl=True)
    assert all((g == 0).all() for g in theirs.values()) or relative_error(ours, theirs) < 1e-4


def test_one_backward_of_the_weighted_advantage_is_the_weighted_sum_of_the_gradients(setting):
    config, policy, rollout = setting
    N, T, K = len(rollout.batch), 3, 4
    advantages, w_K = random_advantages(N, K), np.array([0.1, 0.5, 0.0, 0.4])
    rows, w_J = reward_rows(advantages, split(rollout.batch), T), np.concatenate([w_K, w_K])
    separate = backward.per_reward(policy, rollout, rows, config.loss).gradients.combine(np.append(w_J, 1.0))
    one = backward.weighted_sum(policy, rollout, rows, w_J, config.loss).gradients.combine(np.ones(1))
    assert relative_error(one, separate) < 1e-5


def test_backward_passes_do_not_grow_with_the_number_of_rewards(setting):
    config, policy, rollout = setting
    counts = set()
    for K in (1, 5, 64):
        advantages = random_advantages(len(rollout.batch), K)
        done = backward.per_reward(policy, rollout, reward_rows(advantages, split(rollout.batch), 3), config.loss)
        counts.add((done.forwards, done.backwards))
    micro_batches = 2 * 3
    expected = (2, 2) if policy.old_is_default else (3, 3)  # with the KL on every micro-batch
    assert counts == {tuple(micro_batches * n for n in expected)}


def test_a_row_of_weight_0_may_hold_what_is_not_a_number(setting):
    config, policy, rollout = setting
    advantages = random_advantages(len(rollout.batch), 3)
    gradients = backward.per_reward(policy, rollout, reward_rows(advantages, None, 3), config.loss).gradients
    before = gradients.combine(np.array([0.5, 0.0, 0.0, 1.0]))
    for total in gradients.sums.values():
        total[1] = torch.nan
    assert relative_error(gradients.combine(np.array([0.5, 0.0, 0.0, 1.0])), before) < 1e-12


def test_the_gram_matrix_is_that_of_the_gradients(setting):
    config, policy, rollout = setting
    advantages = random_advantages(len(rollout.batch), 3)
    gradients = backward.per_reward(policy, rollout, reward_rows(advantages, split(rollout.batch), 3), config.loss).gradients
    rows = [torch.cat([g.flatten() for g in gradients.combine(e).values()]).double().numpy() for e in np.eye(gradients.rows)]
    assert np.allclose(gradients.gram(), np.array(rows) @ np.array(rows).T, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize(("starts", "timesteps", "fraction"), [(4, 4, 0.125), (16, 3, 0.3), (8, 2, 1.0), (3, 2, 0.5)])
def test_the_kls_micro_batches_are_each_as_likely_and_share_out_evenly(starts, timesteps, fraction):
    loss = small_config(f"loss.timesteps={timesteps}", f"loss.kl_fraction={fraction}").loss
    taken, drawn = int(np.ceil(fraction * starts * timesteps)), 4000
    times = np.zeros((timesteps, starts))
    for seed in range(drawn):
        carriers = np.array(sorted(kl_carriers(starts, loss, seed)))
        assert len(carriers) == taken and carriers[-1] < starts * timesteps
        np.add.at(times, (carriers // starts, carriers % starts), 1)
        for processes in (2, 4, 8):
            if starts % processes == 0:
                share = np.bincount(carriers % starts * processes // starts, minlength=processes)
                assert share.max() - share.min() <= (0 if taken % processes == 0 else 1)
    expected = drawn * taken / times.size
    assert np.abs(times - expected).max() < 5 * np.sqrt(expected)
