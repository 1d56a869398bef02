"""``balance.trust: auto``: the exponent whose directions the next step's gradients agree with best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.evidence import Evidence
from marble_core.algorithm.marble import MinNorm
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.split_half import SplitHalf
from marble_core.config.balance import CANDIDATES, BalanceConfig

RHO = 0.9  # [O] of the averages over steps
LEAD = 2.0  # [O] standard errors by which another must be ahead to take over
BEGIN = "2"  # [O] no evidence, equal shares


class AutoTrust(Balancer):
    """One balancer for each of ``CANDIDATES``, all of which see every step; the chosen one's weights make the update.

    A candidate's score is the smallest cosine of the direction that it would have taken in the last step with a gradient of this
    step, averaged over steps: no gradient is held against a direction that was made of it. The best takes over where it leads the
    chosen one by more than the noise of their difference, step by step.
    """

    def __init__(self, config: BalanceConfig, names: tuple[str, ...], steps: int) -> None:
        super().__init__(config, names, steps)
        self.candidates = {
            label: MinNorm(config.model_copy(update=setting), names, steps) for label, setting in CANDIDATES.items()
        }
        self.chosen = BEGIN
        self.score_R = Evidence((len(CANDIDATES),), RHO)
        self.lead_RR = Evidence((len(CANDIDATES), len(CANDIDATES)), RHO)

    def needs_gram(self, step: int) -> bool:
        return self.candidates[self.chosen].needs_gram(step)

    def weigh(self, G_KK: np.ndarray, has_signal_K: np.ndarray, signal: SplitHalf | InTime | None = None) -> Balance:
        balances = {label: each.weigh(G_KK, has_signal_K, signal) for label, each in self.candidates.items()}
        active = balances[self.chosen].active_K
        if isinstance(signal, InTime) and active.any() and len(signal.last_RK) == 1 + len(balances):
            self._judge(np.nan_to_num(signal.last_RK[1:, active]).min(1))
        done = balances[self.chosen]
        tried_RK = np.array([each.w_K for each in balances.values()])
        return replace(done, tried_RK=tried_RK, numbers={**done.numbers, **self._numbers()})

    def _judge(self, worst_R: np.ndarray) -> None:
        """A direction of length 0 has the cosine 0."""
        self.score_R.add(worst_R, np.ones(worst_R.shape, bool))
        self.lead_RR.add(worst_R[:, None] - worst_R[None], np.ones(self.lead_RR.sum.shape, bool))
        labels = list(self.candidates)
        best, now = int(self.score_R.mean.argmax()), labels.index(self.chosen)
        if self.lead_RR.mean[best, now] > LEAD * np.sqrt(self.lead_RR.variance[best, now]):
            self.chosen = labels[best]

    def _numbers(self) -> dict[str, float]:
        p = self.candidates[self.chosen].p
        numbers = {"trust/p": p or 0.0, "trust/raw": float(self.chosen == "raw")}
        if self.score_R.weight.any():
            numbers |= {f"trust/score:{label}": float(s) for label, s in zip(self.candidates, self.score_R.mean, strict=True)}
        return numbers

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        return self.candidates[self.chosen].between(step, has_signal_K)

    def rethink(self, G_KK: np.ndarray, balance: Balance) -> np.ndarray:
        return self.candidates[self.chosen].rethink(G_KK, balance)

    def state(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen,
            "score": self.score_R.state(),
            "lead": self.lead_RR.state(),
            "candidates": {label: each.state() for label, each in self.candidates.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.chosen = state["chosen"]
        self.score_R.load_state(state["score"])
        self.lead_RR.load_state(state["lead"])
        for label, each in self.candidates.items():
            each.load_state(state["candidates"][label])
