"""One optimizer step, the straight line: prompts -> rollout -> rewards -> advantages -> direction -> update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from marble_core.algorithm import update
from marble_core.algorithm.advantages import Advantages, estimate
from marble_core.algorithm.balancers import Balancer
from marble_core.algorithm.metrics import Clock, gradient_metrics, reward_metrics
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import BackgroundScores, score_all
from marble_core.runtime import distributed
from marble_core.types import Prompt, PromptBatch, RewardTable, Rollout, Scorer, StepReport


@dataclass
class Learner:
    """What a step changes and what it uses. ``step`` counts all steps behind us, ``updates`` those that were not skipped."""

    config: RunConfig
    policy: Policy
    scorers: tuple[Scorer, ...]
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    step: int = 0
    updates: int = 0
    updating: bool = False  # between two states: neither to be saved nor to be interrupted
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry a step, as the report draws it


def optimizer_step(learner: Learner, prompts: Sequence[Prompt]) -> StepReport:
    """One step under the configured loss and balancer; the learner is changed only if all numbers are finite."""
    config, policy, balancer = learner.config, learner.policy, learner.balancer
    clock = Clock()

    batch = mix(eligible(learner, prompts), config.rollout.prompts, config.rollout.images_per_prompt, learner.step, config.seed)
    ahead = BackgroundScores(learner.scorers, batch.prompts_of(distributed.images_of(batch)))
    rollout = collect(policy, batch, config.rollout, ahead.add)
    clock.lap("sample")

    table = distributed.gather_table(score_all(learner.scorers, rollout.images_NHWC, ahead.prompts, ahead))
    clock.lap("score")
    if faults := _faults(table, batch):
        return _skipped(learner, faults, fault=True)

    raw = estimate(table, batch.group_N, config.loss.advantage_std, balancer.mixing)
    advantages, clamped = raw.clamped(config.loss.advantage_max)
    if not advantages.A_NK.any():
        return _skipped(learner, ["no reward tells the images of a prompt apart"])
    found = _find_or_forget(learner, rollout, advantages)
    if not found.is_finite:
        return _skipped(learner, [_where_not_finite(found, rollout, table.names)], fault=True)
    if not found.balance.active_K.any():
        return _skipped(learner, ["no reward is active", *found.balance.notes])

    learner.updating = True
    norm = policy.update(learner.optimizer, found.gradient, learner.updates, config.optimizer)
    learner.step += 1
    learner.updates += 1
    clock.lap("train")

    metrics = reward_metrics(table, batch) | clock.metrics(len(batch)) | {"clamped": clamped, "update/norm": norm}
    metrics |= {"passes/forward": found.forwards, "passes/backward": found.backwards}
    if not balancer.mixing:
        metrics |= {f"alpha/{n}": float(a) for n, a in zip(table.names, found.balance.share_K, strict=True)}
    metrics |= {"stationary": float(found.balance.stationary), "qp_failed": float(found.balance.failed)}
    metrics["inactive"] = float((~found.balance.active_K).sum())
    if found.seen:
        metrics |= gradient_metrics(table.names, found.seen, found.balance, balancer, len(batch))
    return _recorded(learner, StepReport(learner.step, metrics, found.balance.notes))


def _find_or_forget(learner: Learner, rollout: Rollout, advantages: Advantages) -> update.Update:
    """The direction; where it is not finite or the step is interrupted, the balancer remembers nothing of it."""
    remembered, found = learner.balancer.state(), None
    try:
        found = update.balanced_update(learner.policy, rollout, advantages, learner.balancer, learner.step, learner.config)
        return found
    finally:
        if found is None or not found.is_finite:
            learner.balancer.load_state(remembered)


def _recorded(learner: Learner, report: StepReport) -> StepReport:
    line = {"step": report.step, "time": time.time(), "metrics": dict(report.metrics), "notes": list(report.notes)}
    learner.history.append(line)
    learner.updating = False
    return report


def eligible(learner: Learner, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts of the sources that this step's rewards apply to, or that its stage names: all of them for most methods."""
    names, sources = learner.balancer.rewards(learner.step), learner.balancer.sources(learner.step)
    if not sources:
        scorers = [s for s in learner.scorers if s.name in names]
        sources = tuple({p.source for p in prompts if any(s.applies(p) for s in scorers)})
    return [p for p in prompts if p.source in sources]


def _faults(table: RewardTable, batch: PromptBatch) -> list[str]:
    return [
        f"reward {table.names[k]} is not finite for {_prompt(batch, batch.prompt_N[i])}"
        for i, k in np.argwhere(np.isinf(table.R_NK))[:3]
    ]


def _where_not_finite(found: update.Update, rollout: Rollout, names: Sequence[str]) -> str:
    """The rewards whose own gradients are not finite, where those were computed, and the prompts whose latents are not."""
    batch, index_N = rollout.batch, rollout.index_N
    bad_M = np.zeros(len(batch.prompts))
    np.add.at(bad_M, batch.prompt_N[index_N], [float(not x0.isfinite().all()) for x0 in rollout.x0_NCHW])
    said = [f"latents of {_prompt(batch, m)}" for m in np.flatnonzero(distributed.sum_array(bad_M))[:3]]
    if found.seen:
        squares_K = np.diag(found.seen.G_KK)
        said = [f"reward {name}" for name, square in zip(names, squares_K, strict=False) if not np.isfinite(square)] + said
    return f"the gradient is not finite{': ' if said else ''}{', '.join(said)}"


def _prompt(batch: PromptBatch, m: int) -> str:
    on = f" on rank {distributed.rank_of(batch, m)}" if distributed.world() > 1 else ""
    return f"the prompt {batch.prompts[m].text!r}{on}"


def _skipped(learner: Learner, why: list[str], fault: bool = False) -> StepReport:
    learner.updating = True
    learner.step += 1
    return _recorded(learner, StepReport(learner.step, {"skipped": 1.0}, tuple(why), skipped=True, fault=fault))
