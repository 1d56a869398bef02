"""One optimizer step, the straight line of the method. Read this file first.

    prompts -> x0_NCHW, images (the policy ``old`` samples) -> R_NK (K rewards; NaN: no value) -> A_NK (K advantages)
            -> g_k for every reward -> alpha_star_K (the balance of this step) -> alpha_K (averaged, within the user's limits)
            -> w_K -> one update along sum_k w_k g_k

types.py has the legend of the letters, docs/algorithm.md the method.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.diagnostics import no_signal, unusable_rewards, update_not_finite
from marble_core.algorithm.learner import Learner
from marble_core.algorithm.metrics import Clock, skipped_metrics, step_metrics
from marble_core.algorithm.update import balanced_update
from marble_core.models.rollout import beside_base, collect
from marble_core.prompts import by_source, mix
from marble_core.rewards.scoring import BackgroundScores, is_groupwise, score_all
from marble_core.runtime import distributed
from marble_core.types import Prompt, PromptBatch, RewardTable, StepReport


def optimizer_step(learner: Learner, prompts: Sequence[Prompt]) -> StepReport:
    """One step under the configured loss and balancer; the learner is changed only if all numbers are finite.

    Args:
        learner: What is trained, with its rewards; see ``start_learner``.
        prompts: All prompts of the run. Which M of them the step takes depends on the seed and the step alone.

    Returns:
        What the step tells the log. A step from which nothing can be learned is ``skipped``, and changes no weight.

    Raises:
        MarbleError: A reward fails, hangs or returns what is no number.

    Example:
        >>> report = optimizer_step(learner, prepare_data(config).train)
        >>> report.metrics["reward/ocr/mean"], report.metrics["alpha/ocr"]
    """
    config, policy, balancer, clock = learner.config, learner.policy, learner.balancer, Clock()
    M, G = config.rollout.prompts, config.rollout.images_per_prompt
    sources = balancer.eligible(by_source(prompts), learner.scorers, learner.step)
    mixed = mix(prompts, M, G, learner.step, config.seed, config.data.shares, sources)
    batch = replace(mixed, together=any(map(is_groupwise, learner.scorers)))
    background = BackgroundScores.of(learner.scorers, batch)
    rollout = beside_base(collect(policy, batch, config.rollout, background.add), policy, prompts, config)
    clock.lap("sample")

    table = distributed.gather_table(score_all(learner.scorers, rollout.images_NHWC, background.prompts, background))
    clock.lap("score")
    if faults := unusable_rewards(table, batch, config.rewards):
        return _skipped(learner, table, batch, faults, fault=True)

    raw = estimate(table, batch.group_N, config.loss.advantage_std, balancer.mixing)
    advantages, clamped = raw.clamped(config.loss.advantage_max)
    if not advantages.A_NK.any():
        return _skipped(learner, table, batch, no_signal(table, batch))
    update = balanced_update(policy, rollout, advantages, balancer, learner.step, config, learner.meter)
    if not update.is_finite:
        return _skipped(learner, table, batch, [update_not_finite(update, rollout, table.names)], fault=True)
    if not update.balance.active_K.any():
        return _skipped(learner, table, batch, ["no reward is active", *update.balance.notes])

    metrics, odd = step_metrics(table, batch, update, balancer)

    learner.updating = True
    norm = policy.update(learner.optimizer, update.gradient, learner.updates, config.optimizer)
    if learner.meter and update.memorable:
        learner.meter.remember(update.memorable)
    learner.step, learner.updates = learner.step + 1, learner.updates + 1
    clock.lap("train")
    metrics |= clock.metrics(len(batch)) | {"clamped": clamped, "update/norm": norm}
    return _recorded(learner, StepReport(learner.step, metrics, update.balance.notes + odd))


def _skipped(learner: Learner, table: RewardTable, batch: PromptBatch, why: list[str], fault: bool = False) -> StepReport:
    metrics, odd = skipped_metrics(table, batch)
    learner.updating, learner.step = True, learner.step + 1
    return _recorded(learner, StepReport(learner.step, metrics, (*why, *odd), skipped=True, fault=fault))


def _recorded(learner: Learner, report: StepReport) -> StepReport:
    line = {"step": report.step, "time": time.time(), "metrics": dict(report.metrics), "notes": list(report.notes)}
    learner.history.append(line)
    learner.updating = False
    return report
