"""From a rollout and its advantages to one update of the LoRA's weights: passes, balance, combination."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from marble_core.algorithm import backward
from marble_core.algorithm.advantages import Advantages
from marble_core.algorithm.backward import Passes
from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.meter import InTime, Memorable, Meter
from marble_core.algorithm.split_half import SplitHalf, split
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.runtime import distributed
from marble_core.types import Rollout


@dataclass(frozen=True)
class GradientStats:
    """The K gradients of a step as the log sees them: Gram matrix G_KK, and of the two halves where they were kept apart.

    Where the rewards were mixed before there was a gradient, the mixed one is the last entry of all three; w_K are the
    weights of these gradients that make the update, without the KL. ``time`` is what the steps before say of them.
    """

    G_KK: np.ndarray
    halves: SplitHalf | None
    w_K: np.ndarray
    time: InTime | None = None


@dataclass(frozen=True)
class Update:
    """The gradient to follow by parameter name, the balance behind it, and ``stats`` where the K gradients were computed.

    ``memorable`` is for the meter in time, once the update was made.
    """

    gradient: dict[str, torch.Tensor]
    balance: Balance
    stats: GradientStats | None
    forwards: int
    backwards: int
    memorable: Memorable | None = None

    @property
    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(g).all()) for g in self.gradient.values())


def balanced_update(
    policy: Policy,
    rollout: Rollout,
    advantages: Advantages,
    balancer: Balancer,
    step: int,
    config: RunConfig,
    meter: Meter | None = None,
) -> Update:
    """The update of one step; where it is not finite or the step is interrupted, the balancer remembers nothing of it."""
    remembered, update = balancer.state(), None
    try:
        update = _update(policy, rollout, advantages, balancer, step, config, meter)
        return update
    finally:
        if update is None or not update.is_finite:
            balancer.load_state(remembered)


def _update(
    policy: Policy,
    rollout: Rollout,
    advantages: Advantages,
    balancer: Balancer,
    step: int,
    config: RunConfig,
    meter: Meter | None,
) -> Update:
    """The balanced gradient of all K rewards where the balancer needs them, else one mixed backward with its weights.

    Every ``observe``-th step the K gradients are computed for the log alone; that changes no bit of the update. The meter in time
    remembers them where the method never needs any. With ``qp_share`` the balancer learns from a share of the step, and its
    weights are those of a step between two QPs.
    """
    T, keep = config.loss.timesteps, config.balance
    has_signal_K = np.abs(advantages.A_NK).max(0) > 0
    parameters = policy.parameters_of("default")

    if balancer.needs_gram(step) and keep.qp_share == 1:
        every = _all_gradients(policy, rollout, advantages, config, meter)
        balance = distributed.on_main(lambda: balancer.weigh(every.G_KK, has_signal_K, every.signal))
        w_J = np.concatenate([*[balance.w_K] * (2 if every.halves else 1), [1.0]])
        gradient = distributed.gather_layers(every.passes.gradients.combine(w_J), parameters)
        tried_RK = np.zeros((0, len(balance.w_K))) if balance.tried_RK is None else balance.tried_RK
        memorable = every.memorable(meter, parameters, has_signal_K, np.vstack([balance.w_K, tried_RK]))
        stats = GradientStats(every.G_KK, every.halves, balance.w_K, every.time)
        return Update(gradient, balance, stats, every.passes.forwards, every.passes.backwards, memorable)

    seen = memorable = None
    forwards = backwards = 0
    if balancer.needs_gram(step):
        part = _all_gradients(policy, rollout, advantages, config, None)
        balance = distributed.on_main(lambda: _learned(balancer, step, part.G_KK, has_signal_K))
        seen = GradientStats(part.G_KK, None, balance.w_K)
        forwards, backwards = part.passes.forwards, part.passes.backwards
    else:
        balance = distributed.on_main(lambda: balancer.between(step, has_signal_K))
    if seen is None and keep.observe and step % keep.observe == 0:
        every = _all_gradients(policy, rollout, advantages, config, meter, with_mixed=bool(balancer.mixing))
        w_K = np.eye(len(every.G_KK))[-1] if balancer.mixing else balance.w_K
        seen = GradientStats(every.G_KK, every.halves, w_K, every.time)
        if not keep.weighs_gradients:
            memorable = every.memorable(meter, parameters, has_signal_K, w_K[None])
    if balancer.mixing:
        rows, w_J = backward.mean_row(advantages, T), np.ones(1)
    else:
        rows, w_J = backward.reward_rows(advantages, None, T, keep.subtract_common), balance.w_K
        if keep.masks_between == "all":
            w_J = w_J * advantages.count_K / len(advantages.A_N)
    one = backward.weighted_sum(policy, rollout, rows, w_J, config.loss)
    gradient = distributed.gather_layers(one.gradients.combine(np.ones(1)), parameters)
    return Update(gradient, balance, seen, forwards + one.forwards, backwards + one.backwards, memorable)


def _learned(balancer: Balancer, step: int, G_KK: np.ndarray, has_signal_K: np.ndarray) -> Balance:
    """The weights of a step between two QPs, after one on the Gram matrix of a share of this step."""
    solved = balancer.weigh(G_KK, has_signal_K)
    return replace(
        balancer.between(step, has_signal_K),
        alpha_star_K=solved.alpha_star_K,
        w_star_K=solved.w_star_K,
        failed=solved.failed,
        notes=solved.notes,
        numbers=solved.numbers,
    )


@dataclass(frozen=True)
class _Every:
    """The gradients of all rewards, what was made of them, and of a meter in time what it keeps of them."""

    passes: Passes
    G_KK: np.ndarray
    halves: SplitHalf | None
    time: InTime | None
    kept: dict[str, torch.Tensor]

    @property
    def signal(self) -> SplitHalf | InTime | None:
        return self.halves or self.time

    def memorable(
        self, meter: Meter | None, like: dict[str, torch.nn.Parameter], known_K: np.ndarray, W_RJ: np.ndarray
    ) -> Memorable | None:
        return meter.memorable(self.kept, like, self.G_KK, known_K, W_RJ) if meter else None


def _all_gradients(
    policy: Policy,
    rollout: Rollout,
    advantages: Advantages,
    config: RunConfig,
    meter: Meter | None,
    with_mixed: bool = False,
) -> _Every:
    share = 1.0 if with_mixed else config.balance.qp_share  # what is observed for the log is a whole step
    loss = config.loss if share == 1 else config.loss.model_copy(update={"kl_beta": 0.0})  # the whole step has the KL
    half_N = split(rollout.batch) if config.balance.meter == "halves" else None
    rows = backward.reward_rows(advantages, half_N, config.loss.timesteps, config.balance.subtract_common, with_mixed)
    passes = backward.per_reward(policy, rollout, rows, loss, share)
    G_JJ = distributed.sum_array(passes.gradients.gram())[:-1, :-1]
    halves = SplitHalf(G_JJ) if half_N is not None else None
    G_KK = halves.whole if halves else G_JJ
    if meter is None:
        return _Every(passes, G_KK, halves, None, {})
    kept = meter.kept(passes.gradients.sums, len(G_KK))
    return _Every(passes, G_KK, halves, meter.read(kept, G_KK), kept)
