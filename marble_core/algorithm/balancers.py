"""Balancers: from the rewards' gradients to the weights of their combination.

One rule for every mode (MARBLE, arXiv 2605.06507, eq. 5-8, carried further):

    ghat_k = g_k / n_k with n_k = ||g_k||;  alpha* = the min-norm point of the ghat_k within the limits, when it is solved
    abar   = rho abar + (1 - rho) alpha*     (the first value unblended; entries of inactive rewards stay as they are)
    a      = alpha* on a solved step if ema_on_solved is false, else abar
    a      <- (1 - kappa) prior + kappa a;   inactive entries 0;   renormalised
    w_k    = a_k nbar / n'_k, n'_k = n_k when solved, its EMA in between, nbar = mean of n'_k over the active rewards
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from marble_core.algorithm.split_half import SplitHalf
from marble_core.config.balance import BalanceConfig, StageConfig
from marble_core.config.methods import METHODS, Mixing
from marble_core.types import Prompt, Scorer

if TYPE_CHECKING:
    from marble_core.algorithm.meter import InTime


@dataclass(frozen=True)
class Balance:
    """The weights of one step, and what was odd.

    Args:
        w_K: Weights of the raw gradients, whose sum is the update.
        alpha_K: The shares that they stand for, which add up to 1.
        active_K: The rewards that take part.
        alpha_star_K: The min-norm point of this step, where it was solved.
        w_star_K: The weights of the raw gradients that it stands for.
        stationary: No direction improves every reward; counted in the log.
        failed: The QP has no solution and the last weights are used; counted in the log.
        notes: Sentences for the log.
        numbers: Numbers for the log.
        tried_RK: Weights that were not taken, whose directions the meter in time holds against the next step.
        guard_K: The rewards that guard and have no share, where there are some.

    Example:
        >>> half = np.array([0.5, 0.5])
        >>> float(Balance(w_K=half, alpha_K=half, active_K=half > 0).w_K.sum())
        1.0
    """

    w_K: np.ndarray
    alpha_K: np.ndarray
    active_K: np.ndarray
    alpha_star_K: np.ndarray | None = None
    w_star_K: np.ndarray | None = None
    stationary: bool = False
    failed: bool = False
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    tried_RK: np.ndarray | None = None
    guard_K: np.ndarray | None = None


class Balancer:
    """``mixing``: the rewards become one advantage an image before there is a gradient, by their raw values or by their
    advantages. ``needs_gram`` is the one branch of the loop.

    Args:
        config: The section ``balance``.
        names: Of the K rewards.
        steps: ``train.steps``.

    Example:
        >>> class Equal(Balancer):  # examples/custom_method.py has one that weighs by the Gram matrix
        ...     def between(self, step, has_signal_K):
        ...         return Balance(has_signal_K / 5, has_signal_K / 5, has_signal_K)
    """

    mixing: Mixing | None = None

    def __init__(self, config: BalanceConfig, names: tuple[str, ...], steps: int) -> None:
        self.config, self.names, self.steps = config, names, steps

    def needs_gram(self, step: int) -> bool:
        return False

    def weigh(self, G_KK: np.ndarray, has_signal_K: np.ndarray, signal: SplitHalf | InTime | None = None) -> Balance:
        """Weights from the Gram matrix of the step's own gradients. ``has_signal_K``: some image has a non-zero advantage;
        ``signal``: what ``balance.meter`` says, None where there is none."""
        raise NotImplementedError

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        """Weights of a step without gradients of its own."""
        return _uniform(np.ones(len(self.names), dtype=bool), has_signal_K)

    def rewards(self, step: int) -> tuple[str, ...]:
        """The rewards that this step trains on: prompts come from the sources that they apply to."""
        return self.names

    def sources(self, step: int) -> tuple[str, ...]:
        """The sources that this step is limited to; empty where it is not."""
        return ()

    def eligible(self, prompts: Mapping[str, Sequence[Prompt]], scorers: Sequence[Scorer], step: int) -> list[str]:
        """Of the sources with their prompts those that this step's rewards apply to, or that its stage names: all for most methods."""
        names, sources = self.rewards(step), self.sources(step)
        if sources:
            return [source for source in prompts if source in sources]
        own = [s for s in scorers if s.name in names]
        return [source for source, of_it in prompts.items() if any(s.applies(p) for p in of_it for s in own)]

    def rethink(self, G_KK: np.ndarray, balance: Balance) -> np.ndarray:
        """The weights w_K that this Gram matrix would have had instead of the one behind ``balance``, without memory: what the
        held-out cosines are measured with. Raises ArithmeticError where there are none."""
        return balance.w_K

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass


class WeightedSum(Balancer):
    """``weighted_sum``: one advantage, that of the mean of an image's valid raw rewards."""

    mixing = METHODS["weighted_sum"].mixing


class Gdpo(Balancer):
    """``gdpo``: one advantage, the mean of an image's valid advantages within the prompt's group, whitened over the step."""

    mixing = METHODS["gdpo"].mixing


class Single(Balancer):
    """``single:<reward>``: the baseline that sees one reward, and the sources that it applies to."""

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        return _uniform(np.array([n == self.config.single for n in self.names]), has_signal_K)

    def rewards(self, step: int) -> tuple[str, ...]:
        return (self.config.single,)


class Sequential(Balancer):
    """``sequential``: one stage after the other, each with its rewards, sources and number of steps."""

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        return _uniform(np.array([n in self._stage(step).rewards for n in self.names]), has_signal_K)

    def rewards(self, step: int) -> tuple[str, ...]:
        return self._stage(step).rewards

    def sources(self, step: int) -> tuple[str, ...]:
        return self._stage(step).sources

    def _stage(self, step: int) -> StageConfig:
        ends = np.cumsum([stage.steps for stage in self.config.stages])
        return self.config.stages[min(int(np.searchsorted(ends, step, side="right")), len(ends) - 1)]


def _uniform(chosen_K: np.ndarray, has_signal_K: np.ndarray) -> Balance:
    alpha_K = chosen_K / chosen_K.sum()
    return Balance(alpha_K, alpha_K, chosen_K & has_signal_K)
