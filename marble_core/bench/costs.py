"""Whole optimizer steps, composed of parts that were counted (FLOP) or measured (seconds): the same sums for both.

A whole step is an image's sampling and its training timesteps. Left out on both sides of every ratio: text encoders, VAE,
rewards, QP, optimizer. So is the saving of the first two steps, where ``old`` equals ``default``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

REWARDS = (2, 5, 16, 64)  # K
JACOBIANS = (2, 5)  # K for which another library's Jacobian is measured beside
SOLVE_EVERY = 10  # of the amortised mode

C = TypeVar("C")
Recompute = Literal["none", "each pass", "once"]


def with_halves(K: int) -> int:
    """Rows of accumulators: every reward over both halves of the step, and the KL."""
    return 2 * K + 1


def without_halves(K: int) -> int:
    return K + 1


@dataclass(frozen=True)
class Parts(Generic[C]):
    """Costs, in one unit or as counted work, of one micro-batch: velocities with the LoRA, without it, and with a graph; backward passes over that graph.

    ``plain`` is autograd's own backward to the LoRA's weights, ``rows[R]`` one pass of ``RowGradients`` with R rows,
    ``jacobian[K]`` the K gradients by TorchJD's autojac (only where it was measured).
    """

    forward: C
    reference: C
    taped: C
    plain: C
    rows: Mapping[int, C]
    jacobian: Mapping[int, C] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """Velocities of a step's sampling and training, for one image.

    ``recompute``: gradient checkpointing, where a backward first runs its forward again, in each pass of a micro-batch or
    once for all of them. That is a formula (a recompute costs a forward); how often blocks are run is counted in a test.
    """

    kl_fraction: float = 1 / 8
    recompute: Recompute = "none"
    sampling: int = 25
    timesteps: int = 24

    def plain(self, parts: Parts[float]) -> float:
        """Weighted sum: one backward, in which the KL rides along."""
        return self._step(parts, parts.plain, passes=1)

    def mixed(self, parts: Parts[float]) -> float:
        """The same through ``RowGradients``: what a step between two QPs costs."""
        return self._step(parts, parts.rows[1], passes=1)

    def exact(self, parts: Parts[float], rows: int) -> float:
        """All rewards from two passes, and the KL's share of a third."""
        passes = 2 + self.kl_fraction
        return self._step(parts, passes * parts.rows[rows], passes)

    def amortised(self, parts: Parts[float], rows: int) -> float:
        return (self.exact(parts, rows) + (SOLVE_EVERY - 1) * self.mixed(parts)) / SOLVE_EVERY

    def separate(self, parts: Parts[float], K: int) -> float:
        """K + 1 ordinary backward passes: one a reward, and the KL's share."""
        passes = K + self.kl_fraction
        return self._step(parts, passes * parts.plain, passes)

    def jacobian(self, parts: Parts[float], K: int) -> float:
        """The K gradients by TorchJD's autojac, and the KL's share of an ordinary backward."""
        return self._step(parts, parts.jacobian[K] + self.kl_fraction * parts.plain, passes=K + self.kl_fraction)

    def _step(self, parts: Parts[float], backward: float, passes: float) -> float:
        recomputes = {"none": 0.0, "each pass": passes, "once": 1.0}[self.recompute]
        velocities = parts.forward + self.kl_fraction * parts.reference + parts.taped
        return self.sampling * parts.forward + self.timesteps * (velocities + backward + recomputes * parts.forward)
