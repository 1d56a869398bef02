"""What a step tells the log, as flat names: reward/NAME/mean, side/NAME/VALUE, alpha/NAME, cosine/A:B, consistency/NAME, time/sample, ..."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np

from marble_core.balance import Balance, Balancer
from marble_core.halves import SMALLEST, Halves, images_for_half
from marble_core.types import PromptBatch, RewardTable


def reward_metrics(table: RewardTable, batch: PromptBatch) -> dict[str, float]:
    """Mean and std of each reward over the images that it applies to, its mean by source, and the mean of its side values."""
    source_N = np.array([batch.prompts[g].source for g in batch.group_N])
    out = {f"reward/{n}/mean": m for n, m in table.means().items()}
    out |= {f"side/{n}": m for n, m in table.side_means().items()}
    for k, name in enumerate(table.names):
        if table.mask_NK[:, k].any():
            out[f"reward/{name}/std"] = float(np.nanstd(table.R_NK[:, k]))
        for source in dict.fromkeys(source_N):
            values = table.R_NK[source_N == source, k]
            if not np.isnan(values).all():
                out[f"reward/{name}/{source}"] = float(np.nanmean(values))
    return out


def gradient_metrics(
    names: tuple[str, ...], halves: Halves, balance: Balance, balancer: Balancer, images: int
) -> dict[str, float]:
    """Of the active rewards: norms, cosines with each other and with the update, self-consistency, held-out cosines.

    ``cosine/worst`` is the least cosine of the update (without the KL) with a reward's gradient; ``held_out/worst`` the same
    for a direction found on one half of the prompts and gradients of the other, which is what says something of the next
    batch. ``consistency/NAME`` is near 1 for signal and near 0 for noise; ``images_needed/NAME`` would bring it to .5.
    """
    on = np.flatnonzero(balance.active_K)
    G_KK = halves.whole
    norm_K = np.sqrt(np.diag(G_KK)) + SMALLEST
    C_KK = G_KK / np.outer(norm_K, norm_K)
    out = {f"grad_norm/{names[k]}": norm_K[k] for k in on}
    out |= {f"cosine/{names[j]}:{names[k]}": C_KK[j, k] for k in on for j in on if j < k}

    towards_K = G_KK @ balance.w_K
    length = np.sqrt(max(balance.w_K @ towards_K, SMALLEST))
    if balance.w_K.any() and len(on):
        cosine_K = towards_K / (length * norm_K)
        out |= {f"cosine/update:{names[k]}": cosine_K[k] for k in on}
        out["cosine/worst"] = cosine_K[on].min()

    if balance.solved_K is not None:
        out |= {f"alpha_star/{names[k]}": balance.solved_K[k] for k in on}
        direction_K = C_KK @ balance.solved_K
        out["cosine/worst_star"] = direction_K[on].min() / np.sqrt(max(balance.solved_K @ direction_K, SMALLEST))

    consistency_K = halves.consistency()
    for k in on:
        out[f"consistency/{names[k]}"] = consistency_K[k]
        out[f"images_needed/{names[k]}"] = images_for_half(consistency_K[k], images)
    with suppress(ArithmeticError):  # limits that the active rewards alone cannot meet; the balance has said so
        held_out_K = halves.held_out(balance.active_K, balancer.solve_unit)
        out |= {f"held_out/{names[k]}": held_out_K[k] for k in on}
        out |= {"held_out/worst": held_out_K[on].min()} if len(on) else {}
    return {name: float(value) for name, value in out.items()}


class Clock:
    """Seconds by phase of a step: time/sample, time/score, time/train; and images a second over all of them."""

    def __init__(self) -> None:
        self.last = self.first = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"time/{name}"], self.last = now - self.last, now

    def metrics(self, images: int) -> dict[str, float]:
        return self.laps | {"images_per_second": images / (self.last - self.first)}
