"""Guards: rewards that steer nothing, and of which the update may take only a part of what it would (``balance.guards``).

With d = sum_k w_k g_k, the update that the other rewards make, and a guard's gradient g_h, to first order the guard would lose
-<g_h, d> where that is positive. It may lose the share tau_h of it:

    d' = argmin |d' - d|   so that   <g_h, d'> >= tau_h min(<g_h, d>, 0)   for every guard h

These rows are linear in d', so d' is d and a combination of the guards' gradients alone: d' = d + sum_h u_h g_h, u >= 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import numpy as np

from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.split_half import SplitHalf, cosines
from marble_core.config.balance import BalanceConfig

SLACK = 1e-9  # of a row, in units of the lengths of d and g_h


def least_push(G_HH: np.ndarray, lost_H: np.ndarray, tau_H: np.ndarray, length: float) -> np.ndarray:
    """u_H from the guards' Gram matrix, c_h = <g_h, d> in ``lost_H``, and |d|. Raises ArithmeticError where no d' meets the rows.

    The projection onto the rows' polyhedron is unique, and its multipliers solve G u = r on the rows that bind, with r_h =
    tau_h min(c_h, 0) - c_h: the subsets of the few guards are tried, the smaller first.
    """
    needed_H = tau_H * np.minimum(lost_H, 0.0) - lost_H
    slack_H = SLACK * length * np.sqrt(np.diag(G_HH))
    for bound in chain.from_iterable(combinations(range(len(lost_H)), n) for n in range(len(lost_H) + 1)):
        u_H, on = np.zeros(len(lost_H)), list(bound)
        if on:
            u_H[on] = np.linalg.lstsq(G_HH[np.ix_(on, on)], needed_H[on], rcond=None)[0]
        if (u_H >= 0).all() and (G_HH @ u_H >= needed_H - slack_H).all():
            return u_H
    raise ArithmeticError("no direction keeps what the guards ask for")


class Guarded(Balancer):
    """A balancer of the rewards that have a share, whose update is then moved as little as the guards ask for."""

    def __init__(self, inner: Balancer, config: BalanceConfig, names: tuple[str, ...], steps: int) -> None:
        super().__init__(config, names, steps)
        self.inner = inner
        self.guard_K = np.array([name in config.guards for name in names])
        self.shared = np.flatnonzero(~self.guard_K)
        self.tau_K = np.array([config.guards.get(name, np.nan) for name in names])

    def needs_gram(self, step: int) -> bool:
        return self.inner.needs_gram(step)

    def weigh(self, G_KK: np.ndarray, has_signal_K: np.ndarray, signal: SplitHalf | InTime | None = None) -> Balance:
        """A guard without signal, or whose gradient is not finite, guards nothing in this step."""
        own = self.shared
        found = self.inner.weigh(G_KK[np.ix_(own, own)], has_signal_K[own], None if signal is None else signal.of(own))
        balance = self._spread(found)
        norm_K = np.sqrt(np.diag(G_KK))
        watching_K = self.guard_K & has_signal_K & np.isfinite(norm_K) & (norm_K > 0)
        balance = replace(balance, active_K=balance.active_K | watching_K, guard_K=self.guard_K)
        if not found.active_K.any() or not watching_K.any() or found.stationary:
            return balance if found.active_K.any() else replace(balance, active_K=balance.active_K & ~self.guard_K)
        before_K = cosines(balance.w_K, np.where(np.outer(norm_K > 0, norm_K > 0), np.nan_to_num(G_KK), 0.0))
        try:
            w_K, length = self._pushed(G_KK, balance.w_K, watching_K)
        except ArithmeticError as error:
            return replace(balance, failed=True, notes=(*balance.notes, f"the guards failed ({error}), and hold nothing"))
        numbers = {f"guard/before:{self.names[h]}": float(before_K[h]) for h in np.flatnonzero(watching_K)}
        numbers |= {f"guard/push:{self.names[h]}": float(w_K[h] * norm_K[h] / length) for h in np.flatnonzero(watching_K)}
        return replace(balance, w_K=w_K, numbers={**balance.numbers, **numbers})

    def _pushed(self, G_KK: np.ndarray, w_K: np.ndarray, watching_K: np.ndarray) -> tuple[np.ndarray, float]:
        """The weights with the guards', and the length of d. What has no weight may be no number."""
        on, used = np.flatnonzero(watching_K), np.flatnonzero(w_K)
        w = w_K[used]
        length = float(np.sqrt(max(w @ G_KK[np.ix_(used, used)] @ w, 0.0)))
        lost_H = G_KK[np.ix_(on, used)] @ w
        pushed_K = w_K.copy()
        pushed_K[on] = least_push(G_KK[np.ix_(on, on)], lost_H, self.tau_K[on], length)
        return pushed_K, length

    def _spread(self, found: Balance) -> Balance:
        """The balance of the rewards with a share as one of all, in which guards have none."""

        def over_all(values: np.ndarray) -> np.ndarray:
            wide = np.zeros((*values.shape[:-1], len(self.names)), dtype=values.dtype)
            wide[..., self.shared] = values
            return wide

        def known(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else over_all(values)

        return replace(
            found,
            w_K=over_all(found.w_K),
            alpha_K=over_all(found.alpha_K),
            active_K=over_all(found.active_K),
            alpha_star_K=known(found.alpha_star_K),
            w_star_K=known(found.w_star_K),
            tried_RK=known(found.tried_RK),
        )

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        return replace(self._spread(self.inner.between(step, has_signal_K[self.shared])), guard_K=self.guard_K)

    def rewards(self, step: int) -> tuple[str, ...]:
        return self.inner.rewards(step)

    def rethink(self, G_KK: np.ndarray, balance: Balance) -> np.ndarray:
        def narrow(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[own]

        own, G_KK = self.shared, np.nan_to_num(G_KK)
        inner = replace(
            balance,
            w_K=balance.w_K[own],
            alpha_K=balance.alpha_K[own],
            active_K=balance.active_K[own],
            alpha_star_K=narrow(balance.alpha_star_K),
            w_star_K=narrow(balance.w_star_K),
        )
        w_K = np.zeros(len(self.names))
        w_K[own] = self.inner.rethink(G_KK[np.ix_(own, own)], inner)
        watching_K = balance.active_K & self.guard_K & (np.diag(G_KK) > 0)
        return self._pushed(G_KK, w_K, watching_K)[0] if watching_K.any() else w_K

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state(state)
