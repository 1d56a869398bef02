"""Balancers: from the rewards' gradients to the weights of their combination.

One rule (algorithm: MARBLE, arXiv 2605.06507, eq. 5-8): ghat_k = g_k / ||g_k||, alpha* the min-norm point of the
ghat_k, an EMA of alpha*, and w_k = a_k nbar / ||g_k|| with nbar the mean norm of the active rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marble_core.config import BalanceConfig
from marble_core.minnorm import min_norm

STATIONARY = 1e-6  # ||d|| / nbar below which no direction improves every reward


@dataclass(frozen=True)
class Balance:
    """Weights w_K of the raw gradients, the shares alpha_K they stand for, and what the log says about them."""

    w_K: np.ndarray
    alpha_K: np.ndarray
    active_K: np.ndarray
    worst_cosine: float
    notes: tuple[str, ...] = ()


@dataclass
class Marble:
    """The paper's balancer with the QP solved on every step over the gradient of the whole step."""

    config: BalanceConfig
    names: tuple[str, ...]
    alpha_ema_K: np.ndarray | None = field(default=None)

    def needs_gram(self, step: int) -> bool:
        return True

    def weigh(self, G_KK: np.ndarray, has_signal_K: np.ndarray) -> Balance:
        """``G_KK``: Gram matrix of the rewards' gradients; ``has_signal_K``: some image has a non-zero advantage.

        A reward without signal, with a non-finite gradient or one that vanishes beside the others is inactive: it gets
        weight 0 and its EMA stays as it is. Otherwise it would be a normalised noise vector with a share of the update.
        """
        size = len(self.names)
        norms_K = np.sqrt(np.diag(G_KK))
        active = has_signal_K & np.isfinite(norms_K) & (norms_K > 0)
        if active.any():
            active &= norms_K > self.config.dead_norm * np.median(norms_K[active])
        notes = tuple(f"{n} is inactive" for n, on in zip(self.names, active, strict=True) if not on)
        if not active.any():
            return Balance(np.zeros(size), np.zeros(size), active, 0.0, notes)
        unit_norm = np.where(active, norms_K, 1.0)
        C_KK = np.where(np.outer(active, active), G_KK / np.outer(unit_norm, unit_norm), 0.0)
        try:
            alpha_K = _scatter(min_norm(C_KK[np.ix_(active, active)]), active)
            self._remember(alpha_K, active)
        except ArithmeticError as error:
            notes += (f"the QP failed ({error}), the last weights are used",)
            if self.alpha_ema_K is None:
                self.alpha_ema_K = active / active.sum()
        share_K = np.where(active, self.alpha_ema_K, 0.0)
        share_K = share_K / share_K.sum() if share_K.sum() > 0 else active / active.sum()
        w_K = share_K * norms_K[active].mean() / unit_norm
        length = np.sqrt(share_K @ C_KK @ share_K)
        if length < STATIONARY:
            return Balance(np.zeros(size), share_K, active, 0.0, (*notes, "Pareto-stationary: no direction improves all"))
        return Balance(w_K, share_K, active, float((C_KK @ share_K / length)[active].min()), notes)

    def _remember(self, alpha_K: np.ndarray, active: np.ndarray) -> None:
        if self.alpha_ema_K is None:
            self.alpha_ema_K = alpha_K
        else:
            blended = self.config.rho * self.alpha_ema_K + (1 - self.config.rho) * alpha_K
            self.alpha_ema_K = np.where(active, blended, self.alpha_ema_K)

    def state(self) -> dict[str, Any]:
        return {"alpha_ema": None if self.alpha_ema_K is None else self.alpha_ema_K.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.alpha_ema_K = None if state["alpha_ema"] is None else np.array(state["alpha_ema"])


@dataclass
class WeightedSum:
    """The baseline: one advantage of the mean reward, one plain backward; there is nothing to balance."""

    config: BalanceConfig
    names: tuple[str, ...]

    def needs_gram(self, step: int) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


METHODS = {"marble": Marble, "weighted_sum": WeightedSum}


def make_balancer(config: BalanceConfig, names: tuple[str, ...]) -> Marble | WeightedSum:
    return METHODS[config.method](config, names)


def _scatter(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    out = np.zeros(len(where))
    out[where] = values
    return out
