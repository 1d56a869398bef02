"""Rules that make weights of gradients from what one step sees. ``table()`` is where one is added or swapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from marble_core.algorithm.methods import make_balancer
from marble_core.algorithm.min_norm import min_norm
from marble_core.algorithm.split_half import SplitHalf
from marble_core.config.balance import BalanceConfig

MARBLE = "min-norm (marble)"  # the rule that all others are held against


@dataclass(frozen=True)
class Seen:
    """What a rule may look at: the Gram matrix G_KK of the step's gradients, its halves, and ``time_KK``, the estimate of the
    signal's Gram matrix from products of steps with the EMA of the steps before them."""

    G_KK: np.ndarray
    halves: SplitHalf | None = None
    time_KK: np.ndarray | None = None

    def of(self, active_K: np.ndarray) -> Seen:
        both = np.ix_(active_K, active_K)
        halves = None if self.halves is None else SplitHalf(self.halves.G_JJ[np.ix_(*[np.tile(active_K, 2)] * 2)])
        return Seen(self.G_KK[both], halves, None if self.time_KK is None else self.time_KK[both])


@dataclass(frozen=True)
class Rule:
    """``weigh`` makes weights w_K of the raw gradients; ``sees`` says what of ``Seen`` it needs beside G_KK."""

    weigh: Callable[[Seen], np.ndarray]
    sees: Literal["gram", "halves", "time"] = "gram"

    def weights(self, seen: Seen) -> np.ndarray:
        """w_K, 0 for a reward without a gradient."""
        active_K = np.diag(seen.G_KK) > 0
        w_K = np.zeros(len(active_K))
        if active_K.any():
            w_K[active_K] = self.weigh(seen.of(active_K))
        return w_K


def table() -> tuple[dict[str, Rule], list[str]]:
    """The rules by name, and why others are missing."""
    rules = {
        MARBLE: Rule(of_unit(min_norm)),
        "mgda": Rule(lambda seen: min_norm(seen.G_KK)),
        "equal, normalised": Rule(of_unit(lambda C: np.full(len(C), 1 / len(C)))),
        "equal, raw": Rule(lambda seen: np.full(len(seen.G_KK), 1 / len(seen.G_KK))),
        **{f"consensus, p = {p:g}": Rule(of_unit(consensus(p))) for p in (1, 1.5, 2, 4)},
        "marble, gram: cross": Rule(lambda seen: cross(seen.G_KK, seen.halves), "halves"),
        "marble, gram of the EMA": Rule(lambda seen: cross(seen.G_KK, in_place_of_halves(seen.time_KK)), "time"),
    }
    try:
        return rules | _of_torchjd(), []
    except ImportError as error:
        return rules, [f"TorchJD's rules are missing ({error}): pip install torchjd"]


def of_unit(alpha: Callable[[np.ndarray], np.ndarray]) -> Callable[[Seen], np.ndarray]:
    """From the shares of unit gradients, by their cosines C_KK, to weights of the raw ones."""

    def weigh(seen: Seen) -> np.ndarray:
        norm_K = np.sqrt(np.diag(seen.G_KK))
        return alpha(seen.G_KK / np.outer(norm_K, norm_K)) / norm_K

    return weigh


def consensus(p: float, most: int = 5000) -> Callable[[np.ndarray], np.ndarray]:
    """alpha_K of argmin_d sum_k |ghat_k - d|^p by damped Weiszfeld steps in Gram form: p = 1 is the geometric median, p = 2 the
    mean, p to infinity the min-norm point, which is the centre of the smallest ball around unit vectors."""

    def alpha(C_KK: np.ndarray) -> np.ndarray:
        alpha_K = np.full(len(C_KK), 1 / len(C_KK))
        pace = 0.5 / max(1.0, p - 1)
        for _ in range(most):
            squares_K = 1 - 2 * C_KK @ alpha_K + alpha_K @ C_KK @ alpha_K
            pull_K = np.maximum(squares_K, 1e-9) ** ((p - 2) / 2)
            change_K = pull_K / pull_K.sum() - alpha_K
            alpha_K = alpha_K + pace * change_K
            if np.abs(change_K).max() < 1e-10:
                break
        return alpha_K

    return alpha


def cross(G_KK: np.ndarray, halves: SplitHalf | None) -> np.ndarray:
    """The balancer of ``gram: cross`` on its first step."""
    balancer = make_balancer(BalanceConfig(gram="cross"), tuple(f"reward_{k}" for k in range(len(G_KK))), 2)
    return balancer.weigh(G_KK, np.ones(len(G_KK), dtype=bool), halves).w_K


def in_place_of_halves(signal_KK: np.ndarray | None) -> SplitHalf:
    """Halves whose ``cross`` is that estimate of the signal's Gram matrix."""
    assert signal_KK is not None
    nothing = np.zeros_like(signal_KK)
    return SplitHalf(np.block([[nothing, signal_KK / 4], [signal_KK.T / 4, nothing]]))


def _of_torchjd() -> dict[str, Rule]:
    """TorchJD's weightings of a Gram matrix with their published settings. They are told gradients of about unit length, for some
    take what is small for nothing."""
    import torch
    from torchjd import aggregation

    torchjd: Any = aggregation  # it takes any projector, and names one class

    weightings: Mapping[str, Any] = {
        "UPGrad": torchjd.UPGradWeighting(projector=_onto_dual_cone),
        "DualProj": torchjd.DualProjWeighting(projector=_onto_dual_cone),
        "CAGrad, c = 0.5": torchjd.CAGradWeighting(c=0.5),
        "PCGrad": torchjd.PCGradWeighting(),
        "IMTL-G": torchjd.IMTLGWeighting(),
        "Aligned-MTL": torchjd.AlignedMTLWeighting(),
        "FairGrad, alpha = 1": torchjd.FairGradWeighting(alpha=1.0),
    }

    def rule(weighting: Any) -> Rule:
        def weigh(seen: Seen) -> np.ndarray:
            with torch.random.fork_rng(devices=[]):  # PCGrad draws an order
                torch.manual_seed(0)
                return np.asarray(weighting(torch.as_tensor(seen.G_KK / np.diag(seen.G_KK).mean())))

        return Rule(weigh)

    return {f"{name} (TorchJD)": rule(weighting) for name, weighting in weightings.items()}


def _onto_dual_cone(U: Any, G: Any) -> Any:
    """What TorchJD asks of a projector, without the solver that it takes by default: for each row u of U the v >= u that minimises
    v^T G v. With v = u + s these are non-negative least squares in s."""
    import torch
    from scipy.optimize import nnls

    values, vectors = np.linalg.eigh(G.numpy())
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    rows = np.atleast_2d(U.numpy())
    return torch.as_tensor(np.array([u + nnls(root, -root @ u)[0] for u in rows])).reshape(U.shape)
