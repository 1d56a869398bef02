"""GenEval's geometry: where one box stands as seen from another, and how much two overlap. docs/rewards.md, section 4."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

POSITION_SLACK = 0.1


@lru_cache(4096)  # of an image whose objects can be handed out in many ways the same pairs are asked for again and again
def relations(box: Box, other: Box) -> frozenset[str]:
    """Where ``box`` stands as seen from ``other``; the centres must differ by more than a tenth of both sizes together."""
    box_array, other_array = (np.asarray(b, dtype=float).reshape(2, 2) for b in (box, other))
    offset = box_array.mean(0) - other_array.mean(0)
    sizes = np.abs(np.diff(box_array, axis=0)[0]) + np.abs(np.diff(other_array, axis=0)[0])
    revised = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_SLACK * sizes, 0)
    if np.all(np.abs(revised) < 1e-3):
        return frozenset()
    dx, dy = revised / np.linalg.norm(offset)
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return frozenset(relation for relation, holds in found.items() if holds)


def iou(box: Box, other: Box) -> float:
    """Intersection over union as GenEval counts it, with a pixel more on each side's length."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0.0) * max(bottom - top + 1, 0.0)

    shared = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    return shared / (area(*box) + area(*other) - shared)
