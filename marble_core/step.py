"""One optimizer step, the straight line: prompts -> rollout -> rewards -> advantages -> gradients -> weights -> update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from marble_core import passes
from marble_core.advantages import estimate
from marble_core.balance import Balance, Marble, WeightedSum
from marble_core.config import RunConfig
from marble_core.policy import Policy
from marble_core.prompts import mix
from marble_core.rewards import score_all
from marble_core.rollout import collect
from marble_core.types import Prompt, PromptBatch, RewardTable, Scorer, StepReport


@dataclass
class Learner:
    """What a step changes and what it uses. ``step`` counts all steps behind us, ``updates`` those that were not skipped."""

    config: RunConfig
    policy: Policy
    scorers: tuple[Scorer, ...]
    balancer: Marble | WeightedSum
    optimizer: torch.optim.Optimizer
    step: int = 0
    updates: int = 0
    updating: bool = False  # between two states: neither to be saved nor to be interrupted
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry a step, as the report draws it


def optimizer_step(learner: Learner, prompts: Sequence[Prompt]) -> StepReport:
    """One step of DiffusionNFT under the configured balancer; the learner is changed only if all numbers are finite."""
    config, policy = learner.config, learner.policy
    clock = _Clock()

    batch = mix(prompts, config.rollout.prompts, config.rollout.images_per_prompt, learner.step, config.seed)
    rollout = collect(policy, batch, config.rollout)
    clock.lap("sample")

    table = score_all(learner.scorers, rollout.images_NHWC, [batch.prompts[g] for g in batch.group_N])
    clock.lap("score")
    if faults := _faults(table, batch):
        return _skipped(learner, faults)
    advantages, clamped = estimate(table, batch.group_N, config.loss.advantage_std).clamped(config.loss.advantage_max)

    metrics: dict[str, float] = {"clamped": clamped}
    if learner.balancer.needs_gram(learner.step):
        rows = passes.reward_rows(advantages, passes.halves(batch), config.loss.timesteps)
        done = passes.per_row(policy, rollout, rows, config.loss)
        H_RR = done.gradients.gram()
        balance = learner.balancer.weigh(_both_halves(H_RR), np.abs(advantages.A_NK).max(0) > 0)
        update = done.gradients.combine(np.concatenate([balance.w_K, balance.w_K, [1.0]]))
        notes = balance.notes
        metrics |= _gradient_metrics(table.names, H_RR, balance)
    else:
        rows = passes.mean_row(advantages.A_N, config.loss.timesteps)
        done = passes.mixed(policy, rollout, rows, np.ones(1), config.loss)
        update = done.gradients.combine(np.ones(1))
        notes = ()
    if not all(torch.isfinite(g).all() for g in update.values()):
        return _skipped(learner, ["the gradient is not finite"])
    learner.updating = True
    metrics["update/norm"] = policy.update(learner.optimizer, update, learner.updates, config.optimizer)
    learner.step += 1
    learner.updates += 1
    learner.updating = False
    clock.lap("train")

    metrics |= _reward_metrics(table, batch) | clock.metrics(len(batch))
    metrics |= {"passes/forward": done.forwards, "passes/backward": done.backwards}
    return StepReport(learner.step, metrics, notes)


def _both_halves(H_RR: np.ndarray) -> np.ndarray:
    """The Gram matrix of g_k = g_k^a + g_k^b."""
    K = len(H_RR) // 2
    a, b = slice(0, K), slice(K, 2 * K)
    return H_RR[a, a] + H_RR[b, b] + H_RR[a, b] + H_RR[b, a]


def _gradient_metrics(names: tuple[str, ...], H_RR: np.ndarray, balance: Balance) -> dict[str, float]:
    K = len(names)
    G_KK = _both_halves(H_RR)
    norm_K = np.sqrt(np.diag(G_KK))
    half_norm = np.sqrt(np.diag(H_RR)[: 2 * K]) + 1e-30
    update = G_KK @ balance.w_K
    length = np.sqrt(max(balance.w_K @ update, 1e-60))
    out = {"cosine/worst": balance.worst_cosine}
    for k, name in enumerate(names):
        out |= {f"alpha/{name}": balance.alpha_K[k], f"grad_norm/{name}": norm_K[k]}
        if balance.active_K[k]:
            out[f"consistency/{name}"] = H_RR[k, K + k] / (half_norm[k] * half_norm[K + k])
            out[f"cosine/update:{name}"] = update[k] / (length * norm_K[k])
        for j in range(k):
            if balance.active_K[k] and balance.active_K[j]:
                out[f"cosine/{names[j]}:{name}"] = G_KK[k, j] / (norm_K[k] * norm_K[j])
    return {n: float(v) for n, v in out.items()}


def _reward_metrics(table: RewardTable, batch: PromptBatch) -> dict[str, float]:
    source_N = np.array([batch.prompts[g].source for g in batch.group_N])
    out = {f"reward/{n}/mean": m for n, m in table.means().items()}
    for k, name in enumerate(table.names):
        if table.mask_NK[:, k].any():
            out[f"reward/{name}/std"] = float(np.nanstd(table.R_NK[:, k]))
        for source in dict.fromkeys(source_N):
            values = table.R_NK[source_N == source, k]
            if not np.isnan(values).all():
                out[f"reward/{name}/{source}"] = float(np.nanmean(values))
    return out


def _faults(table: RewardTable, batch: PromptBatch) -> list[str]:
    bad_NK = np.isinf(table.R_NK)
    return [
        f"reward {table.names[k]} is not finite for the prompt {batch.prompts[batch.group_N[i]].text!r}"
        for i, k in np.argwhere(bad_NK)[:3]
    ]


def _skipped(learner: Learner, why: list[str]) -> StepReport:
    learner.step += 1
    return StepReport(learner.step, {"skipped": 1.0}, tuple(why), skipped=True)


class _Clock:
    def __init__(self) -> None:
        self.last = self.first = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"time/{name}"], self.last = now - self.last, now

    def metrics(self, images: int) -> dict[str, float]:
        return self.laps | {"images_per_second": images / (self.last - self.first)}
