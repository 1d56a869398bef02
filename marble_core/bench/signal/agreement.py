"""Which rule's update agrees with the true gradients: a rule sees one step, the truth are the other batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marble_core.bench.signal.meter import BETA
from marble_core.bench.signal.products import Estimate, Products
from marble_core.bench.signal.rules import MARBLE, Rule, Seen
from marble_core.bench.signal.truth import positive, signal_gram, signal_norms
from marble_core.runtime.seeding import derive


@dataclass(frozen=True)
class Agreement:
    """Of one rule: the ``cosine`` (K + 1,) of its update with the true gradient of each reward, at the end the mean over those
    that it balances and of which there is a signal; the ``gain`` (K + 1,) of that over min-norm, paired; ``alpha`` (K,), each reward's share of the unit
    gradients in its update, negative where it goes against one; and ``alpha_of_truth`` (K,), the same had it seen the true Gram matrix, NaN for what needs more."""

    cosine: Estimate
    gain: Estimate
    alpha: Estimate
    alpha_of_truth: np.ndarray


@dataclass(frozen=True)
class _Update:
    """``ahead`` (Z, Z, K): of the updates of a batch's steps, unit length, the mean product with another batch's gradients, ``known``
    (Z, Z) over how many steps; ``alpha`` (Z, K)."""

    ahead: np.ndarray
    known: np.ndarray
    alpha: np.ndarray


def agreement(bank: Products, rules: Mapping[str, Rule], balanced: Sequence[int]) -> dict[str, Agreement]:
    """By rule, and where all rewards are balanced for ``bank.mixed`` too. A rule that looks at steps before sees half of the other
    batches, and is judged by the other half."""
    updates = {name: _updates(bank, rule, balanced) for name, rule in rules.items() if rule.sees != "time" or bank.Z > 3}
    if len(balanced) == bank.K:
        updates |= {name: _updates(bank, bank.K + i, balanced) for i, name in enumerate(bank.mixed)}
    truth_KK = positive(signal_gram(bank, np.arange(bank.Z))[np.ix_(balanced, balanced)])
    found = {}
    for name, update in updates.items():
        cosine, gain = _cosines(bank, update, balanced), _cosines(bank, update, balanced, updates[MARBLE])
        alpha = bank.jackknife(lambda keep, update=update: update.alpha[keep].mean(0))  # type: ignore[misc]
        of_truth_K = np.full(bank.K, np.nan)
        if name in rules and rules[name].sees == "gram" and np.isfinite(truth_KK).all():
            of_truth_K[list(balanced)] = _shares(rules[name].weights(Seen(truth_KK)), truth_KK)
        found[name] = Agreement(cosine, gain, alpha, of_truth_K)
    return found


def _cosines(bank: Products, update: _Update, balanced: Sequence[int], reference: _Update | None = None) -> Estimate:
    positive_K = np.diag(signal_gram(bank, np.arange(bank.Z))) > 0
    judged = [k for k in balanced if positive_K[k]]

    def statistic(keep: np.ndarray) -> np.ndarray:
        norms = signal_norms(signal_gram(bank, keep))
        values = _ahead(update, keep) / norms
        if reference:
            values = values - _ahead(reference, keep) / norms
        return np.append(values, values[judged].mean() if judged else np.nan)

    return bank.jackknife(statistic)


def _ahead(update: _Update, keep: np.ndarray) -> np.ndarray:
    """The mean over batches of how far their updates go along the true gradients, those of the other batches."""
    both = np.ix_(keep, keep)
    weight = update.known[both] * ~np.eye(len(keep), dtype=bool)
    total = np.einsum("zu,zuk->zk", weight, update.ahead[both])
    return (total / weight.sum(1)[:, None]).mean(0)


def _updates(bank: Products, rule: Rule | int, balanced: Sequence[int]) -> _Update:
    """A rule's, or those of a row that is an update itself."""
    Z, K = bank.Z, bank.K
    ahead, known, alpha = np.zeros((Z, Z, K)), np.zeros((Z, Z)), np.zeros((Z, K))
    for z in range(Z):
        for f in range(bank.F):
            w_R, alpha_K, judges = np.zeros(bank.R), np.full(K, np.nan), np.ones(Z, dtype=bool)
            if isinstance(rule, int):
                w_R[rule] = 1
            else:
                seen, judges = _seen(bank, rule, z, f, balanced)
                w_R[list(balanced)] = rule.weights(seen)
                alpha_K[list(balanced)] = _shares(w_R[list(balanced)], seen.G_KK)
            alpha[z] += alpha_K / bank.F
            length = np.sqrt(w_R @ bank.whole[z, f, :, z, f, :] @ w_R)
            if length > 0:
                products_ZK = np.einsum("r,rzfk->zk", w_R, bank.whole[z, f])[:, :K] / (bank.F * length)
                ahead[z, judges] += products_ZK[judges]
                known[z] += judges
    return _Update(ahead / np.maximum(known, 1)[..., None], known, alpha)


def _shares(w_K: np.ndarray, G_KK: np.ndarray) -> np.ndarray:
    shares = w_K * np.sqrt(np.clip(np.diag(G_KK), 0, None))
    return shares / max(np.abs(shares).sum(), np.finfo(float).tiny)


def _seen(bank: Products, rule: Rule, z: int, f: int, balanced: Sequence[int]) -> tuple[Seen, np.ndarray]:
    """What a step sees, and the batches (Z,) that it does not, nor is of."""
    halves, judges = bank.step(z, f, balanced), np.arange(bank.Z) != z
    if rule.sees != "time":
        return Seen(halves.whole, halves), judges
    rng = np.random.default_rng(derive(0, "steps before", z, f))
    before = rng.permutation(np.flatnonzero(judges))[: (bank.Z - 1) // 2]
    judges[before] = False
    steps = [*((int(u), int(rng.integers(bank.F))) for u in before), (z, f)]
    return Seen(halves.whole, halves, _in_time(bank, steps, balanced)), judges


def _in_time(bank: Products, steps: Sequence[tuple[int, int]], balanced: Sequence[int], beta: float = BETA) -> np.ndarray:
    """The EMA over these steps, the newest last, of the products of each with the EMA of those before it."""
    total, weight = np.zeros((len(balanced), len(balanced))), 0.0
    for t in range(1, len(steps)):
        c = (1 - beta) * beta ** np.arange(t - 1, -1, -1) / (1 - beta**t)
        own = bank.whole[steps[t]]  # (R, Z, F, R)
        products = sum(c_i * own[list(balanced)][:, u, g][:, list(balanced)] for c_i, (u, g) in zip(c, steps, strict=False))
        total, weight = beta * total + (1 - beta) * (products + products.T) / 2, beta * weight + 1 - beta
    return np.asarray(total / weight)
