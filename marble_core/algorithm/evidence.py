"""What noisy numbers of many steps say together: their mean, how sure it is, and a Gram matrix shrunk by that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Evidence:
    """Averages of an array over steps, later ones counting more (weights rho^age), entry by entry, and their variance.

    The steps' values count as independent. That holds for a meter in time as far as the noise of this step's gradients goes,
    which is most of it: what two of its values share is the average that they were held against.
    """

    def __init__(self, shape: tuple[int, ...], rho: float) -> None:
        self.rho = rho
        self.sum, self.square, self.weight, self.weight_squared = (np.zeros(shape) for _ in range(4))

    def add(self, value: np.ndarray, where: np.ndarray) -> None:
        """Entries outside of ``where`` stay as they are."""
        kept, new, value = np.where(where, self.rho, 1.0), where.astype(float), np.where(where, value, 0.0)
        self.sum = kept * self.sum + new * value
        self.square = kept * self.square + new * value**2
        self.weight = kept * self.weight + new
        self.weight_squared = kept**2 * self.weight_squared + new

    @property
    def mean(self) -> np.ndarray:
        """0 where nothing was added."""
        return self.sum / np.maximum(self.weight, 1.0)

    @property
    def variance(self) -> np.ndarray:
        """Of ``mean``, from the scatter of the values; inf where there were fewer than two."""
        share = self.weight_squared / np.maximum(self.weight, 1.0) ** 2  # one over the number of values that it stands for
        scatter = np.maximum(self.square / np.maximum(self.weight, 1.0) - self.mean**2, 0.0)
        enough = (share > 0) & (share < 1)
        return np.where(enough, scatter * share / np.where(enough, 1 - share, 1.0), np.inf)

    def state(self) -> dict[str, Any]:
        return {name: value.tolist() for name, value in vars(self).items() if name != "rho"}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, np.array(value, dtype=float))


def shrunk(S: Evidence, norm_K: np.ndarray, active: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The cosines of the signals by S, their norms, and the share lambda by which the cosines were shrunk towards 0.

    Norms: u_k^2 = (1 - l_k) S_kk + l_k |g_k|^2 with l_k = Var(S_kk) / S_kk^2, at least floor |g_k|. Cosines S_kj / (u_k u_j) with
    a diagonal of 1, clipped to be PSD, then (1 - lambda) C + lambda I with lambda = sum Var(C_kj) / sum C_kj^2 over the pairs
    (the shrinkage intensity of Ledoit and Wolf 2004, in the form of Schaefer and Strimmer 2005). Shares are within [0, 1], and 1
    where nothing is known: without evidence C is the identity and u_k = |g_k|.
    """
    mean_KK, variance_KK = S.mean, S.variance
    own_K, spread_K = np.diag(mean_KK), np.diag(variance_KK)
    noise_K = np.where(own_K > 0, np.minimum(spread_K / np.where(own_K > 0, own_K, 1.0) ** 2, 1.0), 1.0)
    norm_K = np.where(active, norm_K, 1.0)
    unit_K = np.where(active, np.sqrt(np.maximum((1 - noise_K) * own_K + noise_K * norm_K**2, (floor * norm_K) ** 2)), 1.0)
    pairs = np.outer(active, active) & (S.weight > 0) & ~np.eye(len(active), dtype=bool)
    C_KK = np.where(pairs, mean_KK / np.outer(unit_K, unit_K), 0.0)
    squares = (C_KK[pairs] ** 2).sum()
    noise = (variance_KK / np.outer(unit_K, unit_K) ** 2)[pairs].sum()
    share = float(min(noise / squares, 1.0)) if squares > 0 else 1.0
    values, vectors = np.linalg.eigh(C_KK + np.eye(len(active)))
    psd_KK = (vectors * np.clip(values, 0, None)) @ vectors.T
    length_K = np.sqrt(np.diag(psd_KK))
    return (1 - share) * psd_KK / np.outer(length_K, length_K) + share * np.eye(len(active)), unit_K, share
