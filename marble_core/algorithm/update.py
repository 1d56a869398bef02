"""From a rollout and its advantages to one update of the LoRA's weights: passes, balance, combination."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from marble_core.algorithm import backward
from marble_core.algorithm.advantages import Advantages
from marble_core.algorithm.backward import Passes
from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.split_half import SplitHalf, split
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.runtime import distributed
from marble_core.types import Rollout


@dataclass(frozen=True)
class GradientStats:
    """The K gradients of a step as the log sees them: Gram matrix G_KK, and of the two halves where they were kept apart.

    Where the rewards were mixed before there was a gradient, the mixed one is the last entry of all three; w_K are the
    weights of these gradients that make the update, without the KL.
    """

    G_KK: np.ndarray
    halves: SplitHalf | None
    w_K: np.ndarray


@dataclass(frozen=True)
class Update:
    """The gradient to follow by parameter name, the balance behind it, and ``stats`` where the K gradients were computed."""

    gradient: dict[str, torch.Tensor]
    balance: Balance
    stats: GradientStats | None
    forwards: int
    backwards: int

    @property
    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(g).all()) for g in self.gradient.values())


def balanced_update(
    policy: Policy, rollout: Rollout, advantages: Advantages, balancer: Balancer, step: int, config: RunConfig
) -> Update:
    """The update of one step; where it is not finite or the step is interrupted, the balancer remembers nothing of it."""
    remembered, update = balancer.state(), None
    try:
        update = _update(policy, rollout, advantages, balancer, step, config)
        return update
    finally:
        if update is None or not update.is_finite:
            balancer.load_state(remembered)


def _update(
    policy: Policy, rollout: Rollout, advantages: Advantages, balancer: Balancer, step: int, config: RunConfig
) -> Update:
    """The balanced gradient of all K rewards where the balancer needs them, else one mixed backward with its weights.

    Every ``observe``-th step the K gradients are computed for the log alone; that changes no bit of the update.
    """
    T, keep, subtract = config.loss.timesteps, config.balance, config.balance.subtract_common
    half_N = split(rollout.batch) if keep.halves else None
    has_signal_K = np.abs(advantages.A_NK).max(0) > 0
    parameters = policy.parameters_of("default")

    def all_gradients(with_mixed: bool = False) -> tuple[Passes, np.ndarray, SplitHalf | None]:
        rows = backward.reward_rows(advantages, half_N, T, subtract, with_mixed)
        every = backward.per_reward(policy, rollout, rows, config.loss)
        G_JJ = distributed.sum_array(every.gradients.gram())[:-1, :-1]
        halves = SplitHalf(G_JJ) if keep.halves else None
        return every, halves.whole if halves else G_JJ, halves

    if balancer.needs_gram(step):
        every, G_KK, halves = all_gradients()
        balance = distributed.on_main(lambda: balancer.weigh(G_KK, has_signal_K, halves))
        w_J = np.concatenate([*[balance.w_K] * (2 if halves else 1), [1.0]])
        gradient = distributed.gather_layers(every.gradients.combine(w_J), parameters)
        return Update(gradient, balance, GradientStats(G_KK, halves, balance.w_K), every.forwards, every.backwards)

    balance, stats = distributed.on_main(lambda: balancer.between(step, has_signal_K)), None
    if keep.observe and step % keep.observe == 0:
        _, G_KK, halves = all_gradients(with_mixed=bool(balancer.mixing))
        stats = GradientStats(G_KK, halves, np.eye(len(G_KK))[-1] if balancer.mixing else balance.w_K)
    if balancer.mixing:
        rows, w_J = backward.mean_row(advantages.A_N, T), np.ones(1)
    else:
        rows, w_J = backward.reward_rows(advantages, None, T, subtract), balance.w_K
    one = backward.weighted_sum(policy, rollout, rows, w_J, config.loss)
    gradient = distributed.gather_layers(one.gradients.combine(np.ones(1)), parameters)
    return Update(gradient, balance, stats, one.forwards, one.backwards)
