"""The time left of work in steps, by the pace of the newest ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median

RECENT = 20  # steps, whose median duration is the pace


def seconds_left(times: Sequence[float], step: int, steps: int, now: float) -> float | None:
    """``times`` are those of the steps' ends, in seconds and in order; ``step`` of ``steps`` ended last. None before the second."""
    newest = times[-RECENT - 1 :]
    if len(newest) < 2:
        return None
    pace = median(later - earlier for earlier, later in itertools.pairwise(newest))
    return max(0.0, (steps - step) * pace - min(now - newest[-1], pace))
