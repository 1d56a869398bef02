"""Signal and noise of a step's gradients, from its two halves: no extra pass, only twice the accumulators.

The min-norm point has a positive cosine with every gradient that it was computed from, by construction; that says nothing
about the next batch. So the step's prompts are split in two halves a and b, and what is computed on one is held against the
other. A prompt's images always stay together: centring makes halves inside a group anti-correlated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marble_core.types import PromptBatch

SMALLEST = 1e-30


def split(batch: PromptBatch) -> np.ndarray:
    """0 or 1 for each of the N images: two halves of the groups, balanced by source."""
    latest: dict[str, int] = {}  # the half that a source's last group went to
    half_M = np.zeros(len(batch.prompts), dtype=int)
    for m in dict.fromkeys(batch.group_N.tolist()):
        source = batch.prompts[m].source
        half_M[m] = latest[source] = 1 - latest.get(source, len(latest) % 2)
    return half_M[batch.group_N]


@dataclass(frozen=True)
class SplitHalf:
    """Gram matrix G_JJ of the J = 2K rows (g_1^a .. g_K^a, g_1^b .. g_K^b), where g_k = g_k^a + g_k^b."""

    G_JJ: np.ndarray

    @property
    def K(self) -> int:
        return len(self.G_JJ) // 2

    def of(self, rewards: np.ndarray) -> SplitHalf:
        """The halves of these rewards alone, by their indices."""
        both = np.concatenate([rewards, rewards + self.K])
        return SplitHalf(self.G_JJ[np.ix_(both, both)])

    @property
    def aa(self) -> np.ndarray:
        return self.G_JJ[: self.K, : self.K]

    @property
    def bb(self) -> np.ndarray:
        return self.G_JJ[self.K :, self.K :]

    @property
    def ab(self) -> np.ndarray:
        return self.G_JJ[: self.K, self.K :]

    @property
    def whole(self) -> np.ndarray:
        """G_KK of the g_k."""
        return self.aa + self.bb + self.ab + self.ab.T

    @property
    def cross(self) -> np.ndarray:
        """2 (<g_k^a, g_j^b> + <g_j^a, g_k^b>): an unbiased estimate of the Gram matrix of the signal, not PSD."""
        return 2 * (self.ab + self.ab.T)

    def consistency(self) -> np.ndarray:
        """s_k = <g_k^a, g_k^b> / (|g_k^a| |g_k^b|), in [-1, 1]: near 1 signal, near 0 noise."""
        norm_a, norm_b = (np.sqrt(np.diag(m)) + SMALLEST for m in (self.aa, self.bb))
        return np.diag(self.ab) / (norm_a * norm_b)

    def held_out(self, weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Cosine of the direction that ``weigh`` (Gram matrix -> weights of the gradients) makes of one half with g_k of the other,
        the mean of both ways."""
        ways = ((self.aa, self.bb, self.ab), (self.bb, self.aa, self.ab.T))
        return np.mean([_cosines_between(weigh(own), own, other, between) for own, other, between in ways], axis=0)


def cosines(w_K: np.ndarray, G_KK: np.ndarray) -> np.ndarray:
    """Cosine of sum_k w_k g_k with each g_k, from their Gram matrix."""
    return _cosines_between(w_K, G_KK, G_KK, G_KK)


def _cosines_between(w_K: np.ndarray, own: np.ndarray, other: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Cosine of sum_k w_k g_k with each h_k, from <g_j, g_k>, <h_j, h_k> and <g_j, h_k>."""
    length = np.sqrt(max(w_K @ own @ w_K, SMALLEST**2))
    return (w_K @ between) / (length * (np.sqrt(np.diag(other)) + SMALLEST))


def images_for_half(consistency: float, images: int) -> float:
    """How many images a step would need for a self-consistency of .5, from that of ``images``; inf where it is not
    positive. Noise falls with the number of images, so s = 1 / (1 + c / n)."""
    return images * (1 - consistency) / consistency if consistency > 0 else float("inf")
