"""Signal and noise of a step's gradients, from the steps before it: K averages m_k that share no image with the step.

    m~_k = m_k / (1 - beta^t_k),    S_kj = (<m~_k, g_j> + <m~_j, g_k>) / 2,    then    m_k <- beta m_k + (1 - beta) g_k

At a policy that moves slowly S is an unbiased estimate of <E g_k, E g_j>, and sharper than the halves of one step: each g meets
the mean of several steps (docs/algorithm.md, section 7c). The directions that the last step took, or could have taken, are kept
too: their cosines with this step's gradients are what the next batch says of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from marble_core.algorithm.projection import Projection
from marble_core.algorithm.split_half import images_for_half
from marble_core.config.schema import RunConfig
from marble_core.runtime import distributed

Rows = dict[str, torch.Tensor]  # by parameter name, or of the projection: (rows, *shape)


@dataclass(frozen=True)
class InTime:
    """What the steps before say of this step's K gradients, of squared norms ``square_K``.

    ``S_KK`` estimates the signal's Gram matrix and need not be PSD; NaN where a reward has no average yet. ``last_RK`` are the
    cosines of R directions of the last step with this step's gradients, the update's own first; no rows before the second step.
    ``projection_error``: the largest error of a cosine between this step's gradients, where these are projected.
    """

    S_KK: np.ndarray
    square_K: np.ndarray
    last_RK: np.ndarray
    projection_error: float | None = None

    def of(self, rewards: np.ndarray) -> InTime:
        """What is said of these rewards alone, by their indices."""
        own = {"S_KK": self.S_KK[np.ix_(rewards, rewards)], "square_K": self.square_K[rewards]}
        return replace(self, **own, last_RK=self.last_RK[:, rewards])

    def consistency(self) -> np.ndarray:
        """s_k = S_kk / |g_k|^2, the signal's share of the squared norm: 1 signal, 0 noise; below 0 or above 1 by chance."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share_K = np.diag(self.S_KK) / self.square_K
        return np.where(np.isfinite(share_K), share_K, np.nan)

    def metrics(self, names: tuple[str, ...], images: int, guard_K: np.ndarray | None = None) -> dict[str, float]:
        """Of the rewards that have a number: consistency_time/NAME, images_needed_time/NAME, cosine/last:NAME, and the worst of
        those that are no guard."""
        known = {n: float(s) for n, s in zip(names, self.consistency(), strict=True) if np.isfinite(s)}
        out = {f"consistency_time/{n}": s for n, s in known.items()}
        out |= {f"images_needed_time/{n}": images_for_half(min(s, 1.0), images) for n, s in known.items()}
        if len(self.last_RK):
            last = {n: float(c) for n, c in zip(names, self.last_RK[0], strict=True) if np.isfinite(c)}
            out |= {f"cosine/last:{n}": c for n, c in last.items()}
            guards = () if guard_K is None else {n for n, is_guard in zip(names, guard_K, strict=True) if is_guard}
            if judged := [c for n, c in last.items() if n not in guards]:
                out["cosine/last_worst"] = min(judged)
        return out if self.projection_error is None else out | {"projection_error": self.projection_error}


@dataclass(frozen=True)
class Memorable:
    """What the meter will remember of a step that was finished: its gradients ``rows`` (the rewards' first), which rewards
    ``known_K`` had one, and the directions W_RJ of these rows, of lengths ``length_R``."""

    rows: Rows
    known_K: np.ndarray
    W_RJ: np.ndarray
    length_R: np.ndarray


class Meter:
    """m_k, float32 (float64 where the LoRA is), and the last directions; the same on every process, to the bit.

    Nothing changes before ``remember``, which a step calls when it is certain to be finished, and which needs no other process.
    """

    def __init__(self, config: RunConfig) -> None:
        self.K, self.beta = len(config.rewards), config.balance.meter_beta
        dimensions = config.balance.projected(self.K)
        self.projection = Projection(dimensions, config.seed) if dimensions else None
        self.mean: Rows = {}
        self.last: Rows = {}
        self.count_K = np.zeros(self.K, dtype=int)
        self.length_R = np.zeros(0)

    def kept(self, sums: Mapping[str, torch.Tensor], rows: int) -> Rows:
        """The first rows of the accumulators as they are kept: of this process's layers, or of the projection of all layers."""
        if self.projection is None:
            return {name: total[:rows] for name, total in sums.items()}
        return {"projection": distributed.sum_tensor(self.projection({name: total[:rows] for name, total in sums.items()}))}

    def read(self, kept: Rows, G_KK: np.ndarray) -> InTime:
        """Before the step is remembered. ``G_KK`` is the exact Gram matrix of its gradients, of which the first K are the rewards'."""
        G_KK = G_KK[: self.K, : self.K]
        rows = np.zeros((self.K + len(self.length_R), self.K))
        own = np.zeros((self.K, self.K))
        for name, g in kept.items():
            g = g[: self.K].flatten(1).double()
            before = [b[name].flatten(1).double() for b in (self.mean, self.last) if b]
            if before:
                rows += (torch.cat(before) @ g.mT).cpu().numpy()
            own += (g @ g.mT).cpu().numpy() if self.projection else 0.0
        if self.projection is None:
            rows = distributed.sum_array(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            X_KK = rows[: self.K] / np.where(self.count_K > 0, 1 - self.beta**self.count_K, np.nan)[:, None]
            norm_K = np.sqrt(np.diag(G_KK))
            last_RK = rows[self.K :] / np.outer(self.length_R, norm_K)
            error = np.abs(own - G_KK) / np.outer(norm_K, norm_K) if self.projection else None
        known = error[np.isfinite(error)] if error is not None else None
        return InTime(
            (X_KK + X_KK.T) / 2,
            np.diag(G_KK),
            np.where(np.isfinite(last_RK), last_RK, np.nan),
            None if known is None or not len(known) else float(known.max()),
        )

    def memorable(
        self, kept: Rows, like: Mapping[str, torch.Tensor], G_JJ: np.ndarray, known_K: np.ndarray, W_RJ: np.ndarray
    ) -> Memorable:
        """The whole gradients, from every process's layers, and the directions W_RJ of theirs."""
        rows = kept if self.projection else distributed.gather_layers(kept, like, len(G_JJ))
        return Memorable(rows, known_K & np.isfinite(np.diag(G_JJ)[: self.K]), W_RJ, _lengths(W_RJ, G_JJ))

    def remember(self, step: Memorable) -> None:
        """A reward without a gradient in this step keeps its average as it is."""
        used = torch.as_tensor(np.flatnonzero(step.W_RJ.any(0)))  # the others may hold what is not a number
        W = torch.as_tensor(step.W_RJ[:, used.numpy()])
        for name, g in step.rows.items():
            if name not in self.mean:
                self.mean[name] = torch.zeros_like(g[: self.K])
            mean = self.mean[name]
            if step.known_K.all():
                mean.mul_(self.beta).add_(g[: self.K], alpha=1 - self.beta)
            else:
                for k in np.flatnonzero(step.known_K):
                    mean[k].mul_(self.beta).add_(g[k], alpha=1 - self.beta)
            self.last[name] = torch.tensordot(W.to(g), g[used.to(g.device)], 1)
        self.count_K = self.count_K + step.known_K
        self.length_R = step.length_R

    def state(self) -> dict[str, Any]:
        return {"count": self.count_K.tolist(), "length": self.length_R.tolist()}

    def tensors(self) -> Rows:
        """What a checkpoint holds of it beside ``state``."""
        return {f"meter/mean/{n}": t for n, t in self.mean.items()} | {f"meter/last/{n}": t for n, t in self.last.items()}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.count_K, self.length_R = np.array(state["count"], dtype=int), np.array(state["length"], dtype=float)
        self.mean, self.last = (
            {n.removeprefix(mark): t.to(device, copy=True) for n, t in tensors.items() if n.startswith(mark)}
            for mark in ("meter/mean/", "meter/last/")
        )


def _lengths(W_RJ: np.ndarray, G_JJ: np.ndarray) -> np.ndarray:
    """Of the directions sum_j w_j g_j; a gradient of weight 0 may be no number."""
    used = W_RJ.any(0)
    W, G = W_RJ[:, used], G_JJ[np.ix_(used, used)]
    return np.sqrt(np.maximum(np.einsum("rj,jk,rk->r", W, G, W), 0.0))
