"""How well one step tells the signal from the noise: the spread of two estimates of |E g_k|^2.

By halves, 4 <g^a, g^b> of one step. In time, <m, g> of the step with the EMA m of the steps before. Both are unbiased. Means and
variances are those over all orders of independent steps, in closed form: with X = sum_i c_i <g_i, g> and sum_i c_i = 1,

    Var X = (sum c_i^2) E<g1, g2>^2 + (1 - sum c_i^2) E<g1, g3><g2, g3> - (E<g1, g2>)^2

where each expectation is a mean over different batches, the last over pairs of pairs that share none.
"""

from __future__ import annotations

import numpy as np

from marble_core.bench.signal.products import Estimate, Products
from marble_core.bench.signal.truth import signal_gram

BETA = 0.8  # of the EMA
BATCHES = 4  # that the closed form needs


def meters(bank: Products, beta: float = BETA) -> dict[str, Estimate]:
    """Relative to the truth, (K,): ``halves_mean`` and ``halves_sd`` of the estimate by halves, ``time_sd`` of the one against an
    EMA that has run for long (its mean is 1). NaN from fewer than 4 batches."""
    R, K = bank.R, bank.K
    own = np.einsum("zxyjzxyl->zxyjl", bank.P).reshape(bank.Z, bank.F, 2 * R, 2 * R)
    by_halves_ZFK = 4 * np.stack([own[:, :, k, R + k] for k in range(K)], -1)
    by_steps = np.stack([bank.whole[:, :, k, :, :, k] for k in range(K)], -1)  # P_ZFZFK
    squares = (1 - beta) / (1 + beta)

    def statistic(keep: np.ndarray) -> np.ndarray:
        if len(keep) < BATCHES:
            return np.full((3, K), np.nan)
        S = np.diag(signal_gram(bank, keep))
        truth = np.where(S > 0, S, np.nan)
        halves = by_halves_ZFK[keep]
        pairs = by_steps[np.ix_(keep, np.arange(bank.F), keep)]
        spread_halves = np.square(halves).mean((0, 1)) - _square_of_mean(halves.mean(1))
        return np.stack([halves.mean((0, 1)) / truth, _root(spread_halves) / truth, _root(_in_time(pairs, squares)) / truth])

    found = bank.jackknife(statistic)
    names = ("halves_mean", "halves_sd", "time_sd")
    return {name: Estimate(value, se) for name, value, se in zip(names, found.value, found.se, strict=True)}


def _in_time(pairs: np.ndarray, squares: float) -> np.ndarray:
    """Var X of P_ZFZFK; ``squares`` is sum c_i^2."""
    n = len(pairs)
    other = ~np.eye(n, dtype=bool)
    one = np.square(pairs).mean((1, 3))[other].mean(0)
    with_batch = pairs.mean(3) * other[:, None, :, None]  # of each step with each other batch's mean, (Z, F, Z, K)
    total, alone = with_batch.sum(2), np.square(with_batch).sum(2)
    two = (np.square(total) - alone).mean((0, 1)) / ((n - 1) * (n - 2))
    means = pairs.mean((1, 3)) * other[..., None]
    rows, squared = means.sum(1), np.square(means).sum((0, 1))
    apart = np.square(means.sum((0, 1))) - 4 * np.square(rows).sum(0) + 2 * squared
    return squares * one + (1 - squares) * two - apart / (n * (n - 1) * (n - 2) * (n - 3))


def _square_of_mean(values_ZK: np.ndarray) -> np.ndarray:
    """Unbiased: products of different batches."""
    n = len(values_ZK)
    return (np.square(values_ZK.sum(0)) - np.square(values_ZK).sum(0)) / (n * (n - 1))


def _root(variance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(variance > 0, variance, np.nan))
