"""What became of one prompt's scores: a line of scores.jsonl, from one role, such as the base, to another, such as the trained model, in base standard deviations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from marble_core.evaluation.results import Evaluation


def changes(line: Mapping[str, Any], evaluation: Evaluation, before: str = "base", after: str = "trained") -> dict[str, float]:
    """By reward, of those that both roles have a value of and in which the base has a spread."""
    units = {n: r.base_std for n, r in evaluation.measured.items() if r.base_std > 0}
    base, trained = line.get(before, {}), line.get(after, {})
    return {n: (trained[n] - b) / units[n] for n, b in base.items() if n in units and n in trained}


def change(line: Mapping[str, Any], evaluation: Evaluation, before: str = "base", after: str = "trained") -> float:
    """The mean over the rewards; 0 where there are none."""
    own = changes(line, evaluation, before, after)
    return float(np.mean(list(own.values()))) if own else 0.0
