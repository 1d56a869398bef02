"""From a rollout and its advantages to one direction in the LoRA's weights: passes, balance, combination."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from marble_core import distributed, passes
from marble_core.advantages import Advantages
from marble_core.balance import Balance, Balancer
from marble_core.config import RunConfig
from marble_core.halves import Halves, split
from marble_core.policy import Policy
from marble_core.types import Rollout


@dataclass(frozen=True)
class Direction:
    """The gradient to follow by parameter name, the balance behind it, and ``halves`` where the K gradients were computed."""

    gradient: dict[str, torch.Tensor]
    balance: Balance
    halves: Halves | None
    forwards: int
    backwards: int

    @property
    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(g).all()) for g in self.gradient.values())


def find(
    policy: Policy, rollout: Rollout, advantages: Advantages, balancer: Balancer, step: int, config: RunConfig
) -> Direction:
    """The balanced gradient of all K rewards where the balancer needs them, else one mixed backward with its weights.

    Every ``observe``-th step the K gradients are computed for the log alone; that changes no bit of the direction.
    """
    loss = config.loss
    rows = passes.reward_rows(advantages, split(rollout.batch), loss.timesteps, config.balance.subtract_common)
    has_signal_K = np.abs(advantages.A_NK).max(0) > 0
    needs_gram, parameters = balancer.needs_gram(step), policy.parameters_of("default")
    halves = None
    if needs_gram or (config.balance.observe and step % config.balance.observe == 0):
        every = passes.per_row(policy, rollout, rows, loss)
        halves = Halves(distributed.sum_array(every.gradients.gram())[:-1, :-1])
        if needs_gram:
            balance = distributed.on_main(lambda: balancer.weigh(halves, has_signal_K))
            gradient = every.gradients.combine(np.concatenate([balance.w_K, balance.w_K, [1.0]]))
            return Direction(distributed.gather_layers(gradient, parameters), balance, halves, every.forwards, every.backwards)

    balance = distributed.on_main(lambda: balancer.between(step, has_signal_K))
    if balancer.mixing:
        one = passes.mixed(policy, rollout, passes.mean_row(advantages.A_N, loss.timesteps), np.ones(1), loss)
    else:
        one = passes.mixed(policy, rollout, rows, np.concatenate([balance.w_K, balance.w_K]), loss)
    gradient = distributed.gather_layers(one.gradients.combine(np.ones(1)), parameters)
    return Direction(gradient, balance, halves, one.forwards, one.backwards)
