"""MARBLE's balance: the min-norm point of the rewards' gradients, averaged over steps, within the user's limits.

``balance.trust`` may put another point in its place (``trust.py``); all else stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.evidence import Evidence, shrunk
from marble_core.algorithm.meter import InTime
from marble_core.algorithm.min_norm import Limits, feasible, min_norm
from marble_core.algorithm.split_half import SplitHalf
from marble_core.algorithm.trust import trust_point
from marble_core.config.balance import BalanceConfig
from marble_core.config.constraints import parse
from marble_core.types import MarbleError

STATIONARY = (
    1e-6  # ||d||, as a share of the least of the norms that it is made of, below which no direction improves every reward
)


@dataclass
class _Memory:
    """EMAs over the solved steps; NaN where a reward was never active."""

    alpha_K: np.ndarray
    norm_K: np.ndarray
    cross_KK: np.ndarray

    @classmethod
    def empty(cls, size: int) -> _Memory:
        return cls(np.full(size, np.nan), np.full(size, np.nan), np.full((size, size), np.nan))


class MinNorm(Balancer):
    """``marble``, and ``mgda``, which leaves out the normalisation."""

    def __init__(self, config: BalanceConfig, names: tuple[str, ...], steps: int) -> None:
        super().__init__(config, names, steps)
        self.normalise = config.method == "marble" and config.normalise
        self.p = None if isinstance(config.trust, str) else config.trust  # None: the smallest ball, which is the QP
        self.ema_on_solved = config.every == 1 if config.ema_on_solved is None else config.ema_on_solved
        self.prior_K = _shares(config.prior, names)
        self.limits = read_limits(config, names)
        self.memory = _Memory.empty(len(names))
        self.in_time = Evidence((len(names), len(names)), config.cross_rho)

    def needs_gram(self, step: int) -> bool:
        return step % self.config.every == 0 and step < self.steps - self.config.final_uniform_steps

    def weigh(self, G_KK: np.ndarray, has_signal_K: np.ndarray, signal: SplitHalf | InTime | None = None) -> Balance:
        """A reward without signal, with a non-finite gradient or one that vanishes beside the others is inactive: weight 0,
        its EMAs untouched. Otherwise it would be a normalised noise vector with a share of the update."""
        norm_K = np.sqrt(np.diag(G_KK))
        active = has_signal_K & np.isfinite(norm_K) & (norm_K > 0)
        if active.any():
            active &= norm_K > self.config.dead_norm * np.median(norm_K[active])
        notes = tuple(f"{n} is inactive" for n, on in zip(self.names, active, strict=True) if not on)
        if not active.any():
            return Balance(np.zeros(len(active)), np.zeros(len(active)), active, notes=notes)

        signal_KK, unit_K, numbers = self._balanced(G_KK, norm_K, active, signal)
        cosine_KK = np.where(np.outer(active, active), signal_KK / np.outer(unit_K, unit_K), 0.0)
        alpha_star_K = w_star_K = None
        try:
            alpha_star_K = self._solve(cosine_KK, active)
        except ArithmeticError as error:
            notes += (f"the QP failed ({error}), the last weights are used",)
        else:
            w_star_K = alpha_star_K / unit_K
            self.memory.alpha_K = _blend(self.memory.alpha_K, alpha_star_K, active, self.config.rho)
            self.memory.norm_K = _blend(self.memory.norm_K, unit_K, active, self.config.rho)
        latest_K = self.memory.alpha_K if alpha_star_K is None or self.ema_on_solved else alpha_star_K
        alpha_K = self._share(latest_K, active)
        length = np.sqrt(max(alpha_K @ cosine_KK @ alpha_K, 0.0))
        if length < STATIONARY * (1.0 if self.normalise else norm_K[active].min()):
            notes += ("Pareto-stationary: no direction improves every reward, the update is the KL's alone",)
            w_K = np.zeros(len(active))
            return Balance(w_K, alpha_K, active, alpha_star_K, w_star_K, True, alpha_star_K is None, notes, numbers)
        w_K = _rescale(alpha_K, unit_K, active)
        return Balance(w_K, alpha_K, active, alpha_star_K, w_star_K, False, alpha_star_K is None, notes, numbers)

    def between(self, step: int, has_signal_K: np.ndarray) -> Balance:
        """Between two QPs: abar on gradients normalised by the EMA of their norms, or on raw ones. At the end: uniform [P]."""
        known = has_signal_K & np.isfinite(self.memory.alpha_K)
        if step >= self.steps - self.config.final_uniform_steps or not known.any():
            return super().between(step, has_signal_K)
        alpha_K = self._share(self.memory.alpha_K, known)
        unit_K = self.memory.norm_K if self.config.normalise_between and self.normalise else np.ones(len(known))
        return Balance(_rescale(alpha_K, unit_K, known), alpha_K, known)

    def rethink(self, G_KK: np.ndarray, balance: Balance) -> np.ndarray:
        if balance.alpha_star_K is None:
            return balance.w_K
        active = balance.active_K & (np.diag(G_KK) > 0)
        if not active.any():
            raise ArithmeticError("no active reward has a gradient here")
        signal_KK, unit_K = self._signal(G_KK, np.sqrt(np.diag(G_KK)), active)
        return _rescale(self._share(self._solve(signal_KK / np.outer(unit_K, unit_K), active), active), unit_K, active)

    def _solve(self, cosine_KK: np.ndarray, active: np.ndarray) -> np.ndarray:
        alpha_K, own_KK, limits = np.zeros(len(active)), cosine_KK[np.ix_(active, active)], self.limits.of(active)
        if self.p is None:
            alpha_K[active] = min_norm(own_KK, limits)
        else:
            prior_K = self.prior_K[active]
            alpha_K[active] = trust_point(own_KK, self.p, prior_K if prior_K.any() else np.ones(len(prior_K)), limits)
        return alpha_K

    def _balanced(
        self, G_KK: np.ndarray, norm_K: np.ndarray, active: np.ndarray, signal: SplitHalf | InTime | None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """By ``balance.gram``: the Gram matrix that is balanced, the norms that normalise it, and what is logged of them."""
        if self.config.gram == "time":
            assert isinstance(signal, InTime)  # the configuration sees to it
            self.in_time.add(signal.S_KK, np.outer(active, active) & np.isfinite(signal.S_KK))
            cosine_KK, unit_K, share = shrunk(self.in_time, norm_K, active, self.config.cross_floor)
            return cosine_KK * np.outer(unit_K, unit_K), unit_K, {"shrinkage": share}
        if self.config.gram == "cross":
            assert isinstance(signal, SplitHalf)
            return *self._cross(signal, norm_K, active), {}
        return *self._signal(G_KK, norm_K, active), {}

    def _signal(self, G_KK: np.ndarray, norm_K: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The Gram matrix that is balanced, and the norms that normalise it."""
        return G_KK, np.where(active, norm_K, 1.0) if self.normalise else np.ones(len(norm_K))

    def _cross(self, halves: SplitHalf, norm_K: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the gradients' signal: averaged over steps, made positive semidefinite, with a ridge and a floor."""
        config, both = self.config, np.outer(active, active)
        self.memory.cross_KK = _blend(self.memory.cross_KK, halves.cross, both, config.cross_rho)
        signal_KK = np.where(both, self.memory.cross_KK, 0.0)
        unit_K = np.where(active, np.sqrt(np.maximum(np.diag(signal_KK), (config.cross_floor * norm_K) ** 2)), 1.0)
        values, vectors = np.linalg.eigh(signal_KK / np.outer(unit_K, unit_K))
        cosine_KK = (vectors * np.clip(values, 0, None)) @ vectors.T + config.cross_ridge * np.diag(active)
        return cosine_KK * np.outer(unit_K, unit_K), unit_K

    def _share(self, alpha_K: np.ndarray, active: np.ndarray) -> np.ndarray:
        alpha_K = np.where(active & np.isfinite(alpha_K), alpha_K, 0.0)
        kept = self.config.kappa * (alpha_K / alpha_K.sum() if alpha_K.sum() > 0 else active / active.sum())
        alpha_K = np.where(active, (1 - self.config.kappa) * self.prior_K + kept, 0.0)
        return alpha_K / alpha_K.sum() if alpha_K.sum() > 0 else active / active.sum()

    def state(self) -> dict[str, Any]:
        kept = {name: np.where(np.isnan(ema), np.array(None), ema).tolist() for name, ema in vars(self.memory).items()}
        return kept | ({"in_time": self.in_time.state()} if self.config.gram == "time" else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.memory = _Memory(**{name: np.array(state[name], dtype=float) for name in vars(self.memory)})
        if "in_time" in state:
            self.in_time.load_state(state["in_time"])


def read_limits(config: BalanceConfig, names: tuple[str, ...]) -> Limits:
    """Floors, caps and wishes as constraints on alpha_K."""
    rows = [row for wish in config.wishes for row in parse(wish, names)]
    limits = Limits(
        _by_name(config.floor, names, 0.0, "balance.floor"),
        _by_name(config.cap, names, 1.0, "balance.cap"),
        np.array([row for row, _ in rows]).reshape(-1, len(names)),
        np.array([bound for _, bound in rows]),
    )
    if not feasible(limits):
        said = [f"floor {dict(config.floor)}", f"cap {dict(config.cap)}", f"wishes {list(config.wishes)}"]
        raise MarbleError(f"No weights that add up to 1 can meet balance's {', '.join(said)}; loosen one of them.")
    return limits


def _rescale(alpha_K: np.ndarray, unit_K: np.ndarray, active: np.ndarray) -> np.ndarray:
    """w_k = a_k nbar / n_k over the active rewards."""
    return np.where(active, alpha_K * unit_K[active].mean() / np.where(active, unit_K, 1.0), 0.0)


def _by_name(values: Mapping[str, float], names: tuple[str, ...], default: float, where: str) -> np.ndarray:
    for name in values:
        if name not in names:
            raise MarbleError(f"{where} names the reward {name!r}, but the rewards are {', '.join(names)}.")
    return np.array([values.get(n, default) for n in names])


def _shares(prior: Mapping[str, float], names: tuple[str, ...]) -> np.ndarray:
    prior_K = _by_name(prior, names, 0.0, "balance.prior")
    return prior_K / prior_K.sum() if prior_K.sum() > 0 else np.full(len(names), 1 / len(names))


def _blend(old: np.ndarray, new: np.ndarray, where: np.ndarray, rho: float) -> np.ndarray:
    """EMA of the entries ``where``; an entry's first value is taken as it is."""
    blended = np.where(np.isnan(old), new, rho * old + (1 - rho) * new)
    return np.where(where, blended, old)
