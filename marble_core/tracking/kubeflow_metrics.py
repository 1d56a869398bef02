"""The few numbers that a stage hands to Kubeflow, whose page holds runs against each other by them.

All others are in MLflow. The page may order them by name, so their names say the gain first, and beside it what belongs to it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import HISTORY
from marble_core.evaluation.results import Evaluation
from marble_core.tracking.step_history import History

HONEST = "held_out/"  # cosines of the update with each reward's gradient on prompts that it was not made from


def of_training(adapter: Path, config: RunConfig) -> dict[str, float]:
    """``hours`` of the steps, ``images`` that they sampled, ``steps`` that moved the weights, and ``worst_honest_cosine``: over training,
    the mean honest cosine of the reward for which it is least; absent where the method takes none. Nothing where there is no history."""
    history = History.load(adapter / HISTORY)
    if not len(history.steps):
        return {}
    steps = len(history.steps) - len(history.skipped)
    seconds = sum(float(np.nansum(v)) for name, v in history.metrics.items() if name.startswith("time/"))
    found = {
        "hours": seconds / 3600,
        "images": float(steps * config.rollout.prompts * config.rollout.images_per_prompt),
        "steps": float(steps),
    }
    honest = [c for name in config.reward_names if (c := history.mean(f"{HONEST}{name}")) is not None]
    return found | ({"worst_honest_cosine": min(honest)} if honest else {})


def of_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Gains over the base in its standard deviations: ``gain``, the ends of its interval, ``gain/NAME`` of each reward whose base has a
    spread, and ``gain_over_champion``. ``loss_of_diversity`` is a share of the base's, ``votes`` the share of blind votes that it won."""
    gain = evaluation.mean_gain
    found = {"gain": gain.mean, "gain_high": gain.high, "gain_low": gain.low}
    if evaluation.champion:
        found["gain_over_champion"] = evaluation.champion.mean_gain.mean
    found |= {f"gain/{n}": r.difference.mean / r.base_std for n, r in evaluation.measured.items() if r.base_std > 0}
    if evaluation.diversity:
        found["loss_of_diversity"] = -evaluation.diversity.change.mean
    if evaluation.votes:
        found["votes"] = evaluation.votes.win_rate.mean
    return found
