"""What a step tells the log, as flat names: reward/NAME/mean, side/NAME/VALUE, alpha/NAME, cosine/A:B, consistency/NAME, time/sample, ..."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from marble_core.algorithm.balancers import Balance, Balancer
from marble_core.algorithm.diagnostics import without_value
from marble_core.algorithm.min_norm import min_norm
from marble_core.algorithm.split_half import cosines, images_for_half
from marble_core.algorithm.update import GradientStats, Update
from marble_core.types import PromptBatch, RewardTable


def reward_metrics(table: RewardTable, batch: PromptBatch) -> dict[str, float]:
    """Mean and std of each reward over the images that it applies to, its mean by source, and the mean of its side values."""
    source_N = np.array([batch.prompts[m].source for m in batch.prompt_N])
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


def coverage_metrics(table: RewardTable, batch: PromptBatch) -> dict[str, float]:
    """Of each reward how many images lack a value, and by source how many prompts can teach it nothing.

    A prompt's images teach a reward nothing where fewer than two have a value, or where all values are equal.
    """
    source_M = np.array([prompt.source for prompt in batch.prompts])
    applies_NK, out = table.mask_NK | table.missing_NK, {}
    for k, name in enumerate(table.names):
        if not applies_NK[:, k].any():
            continue
        out[f"missing/{name}"] = float(table.missing_NK[:, k].sum())
        groups = np.unique(batch.group_N[applies_NK[:, k]])
        values = {m: table.R_NK[(batch.group_N == m) & table.mask_NK[:, k], k] for m in groups}
        silent = [m for m, own in values.items() if len(own) < 2 or own.min() == own.max()]
        for source in dict.fromkeys(source_M[groups]):
            out[f"no_signal/{name}/{source}"] = float((source_M[silent] == source).sum()) if silent else 0.0
    return out


def skipped_metrics(table: RewardTable, batch: PromptBatch) -> tuple[dict[str, float], tuple[str, ...]]:
    """What the log is told of a step that was skipped, and the notes on its rewards."""
    return {"skipped": 1.0, **coverage_metrics(table, batch)}, (*table.notes, *without_value(table, batch))


def step_metrics(
    table: RewardTable, batch: PromptBatch, update: Update, balancer: Balancer
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Everything that a step tells the log before its weights move, and notes on its rewards and of what could not be computed.

    A number that is only logged must not end a step: an error in one part leaves that part out, and ``metrics_failed`` counts it.
    """
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "rewards": lambda: reward_metrics(table, batch),
        "coverage": lambda: coverage_metrics(table, batch),
        "balance": lambda: balance_metrics(table.names, update, balancer),
    }
    if (stats := update.stats) is not None:
        parts["gradients"] = lambda: gradient_metrics(table.names, stats, update.balance)
        parts["halves"] = lambda: half_metrics(table.names, stats, update.balance, balancer, len(batch))
        if (in_time := stats.time) is not None:
            parts["meter"] = lambda: in_time.metrics(table.names, len(batch), update.balance.guard_K)
    metrics: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    for part, compute in parts.items():
        try:
            metrics |= compute()
        except Exception as error:  # noqa: BLE001 - whatever it is, the step goes on
            notes += (f"no metrics of the {part} ({type(error).__name__}: {error})",)
    return metrics | {"metrics_failed": float(len(notes))}, (*table.notes, *without_value(table, batch), *notes)


def balance_metrics(names: tuple[str, ...], update: Update, balancer: Balancer) -> dict[str, float]:
    """The shares alpha, what was odd in them, and the passes that they took."""
    balance = update.balance
    metrics: dict[str, float] = {"passes/forward": update.forwards, "passes/backward": update.backwards}
    if not balancer.mixing:
        metrics |= {f"alpha/{n}": float(a) for n, a in zip(names, balance.alpha_K, strict=True)}
    metrics |= {"stationary": float(balance.stationary), "qp_failed": float(balance.failed), **balance.numbers}
    return metrics | {"inactive": float((~balance.active_K).sum())}


def gradient_metrics(names: tuple[str, ...], stats: GradientStats, balance: Balance) -> dict[str, float]:
    """Of every reward whose gradient counts: norm, cosines with the others and with the update.

    ``cosine/worst`` is the least cosine of the update (without the KL) with a reward's gradient, ``cosine/worst_star`` that of
    alpha* alone, which is logged whatever the method. What the steps before say is ``InTime.metrics``.
    """
    on, norm_K, cosine_KK = _counted(names, stats, balance)
    own = _sharing(on, balance)
    if not len(own):
        return {}
    out = {f"grad_norm/{names[k]}": norm_K[k] for k in on}
    out |= {f"cosine/{names[j]}:{names[k]}": cosine_KK[j, k] for k in on for j in on if j < k}

    if stats.w_K.any():
        out |= _cosines("cosine", "update:", names, on, cosines(stats.w_K * norm_K, cosine_KK), balance)
    with suppress(ArithmeticError):  # the balance has said so
        alpha_on, w_star_K = balance.alpha_star_K, balance.w_star_K
        if alpha_on is None or w_star_K is None:
            alpha_on, w_star_K = np.zeros(len(names)), np.zeros(len(names))
            alpha_on[own] = min_norm(cosine_KK[np.ix_(own, own)])
            w_star_K[own] = alpha_on[own] / norm_K[own]
        out |= {f"alpha_star/{names[k]}": alpha_on[k] for k in own}
        w_star_K = np.append(w_star_K, np.zeros(len(norm_K) - len(w_star_K)))
        out["cosine/worst_star"] = cosines(w_star_K * norm_K, cosine_KK)[own].min()
    return {name: float(value) for name, value in out.items()}


def half_metrics(
    names: tuple[str, ...], stats: GradientStats, balance: Balance, balancer: Balancer, images: int
) -> dict[str, float]:
    """What the two halves of the prompts say of each other, which is what says something of the next batch.

    ``consistency/NAME`` is near 1 for signal and near 0 for noise; ``images_needed/NAME`` would bring it to .5. ``held_out/NAME`` is
    the cosine of a direction found on one half with the gradients of the other; there is none where a half has no direction.
    """
    on, _, _ = _counted(names, stats, balance)
    if stats.halves is None or not len(on):
        return {}
    out, consistency_K = {}, stats.halves.consistency()
    for k in on:
        out[f"consistency/{names[k]}"] = consistency_K[k]
        out[f"images_needed/{names[k]}"] = images_for_half(consistency_K[k], images)
    rethought = balance.alpha_star_K is not None
    with suppress(ArithmeticError):  # a half without signal, or limits that its active rewards alone cannot meet
        held_out_K = stats.halves.held_out(lambda G_KK: balancer.rethink(G_KK, balance) if rethought else stats.w_K)
        out |= _cosines("held_out", "", names, on, held_out_K, balance)
    return {name: float(value) for name, value in out.items()}


def _counted(names: tuple[str, ...], stats: GradientStats, balance: Balance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the rewards whose gradient counts, the gradients' norms, and their cosines."""
    G_KK = stats.G_KK
    counts_K = np.isfinite(np.diag(G_KK)) & (np.diag(G_KK) > 0)
    on_K = balance.active_K & counts_K[: len(names)] if balance.alpha_star_K is not None else counts_K[: len(names)]
    norm_K = np.sqrt(np.where(counts_K, np.diag(G_KK), 1.0))
    return np.flatnonzero(on_K), norm_K, np.where(np.outer(counts_K, counts_K), G_KK / np.outer(norm_K, norm_K), 0.0)


def _sharing(on: np.ndarray, balance: Balance) -> np.ndarray:
    """Of these indices those that have a share: guards have none."""
    return on if balance.guard_K is None else on[~balance.guard_K[on]]


def _cosines(
    what: str, of: str, names: tuple[str, ...], on: np.ndarray, cosine_K: np.ndarray, balance: Balance
) -> dict[str, float]:
    """One metric a reward, and the worst of those that have a share."""
    worst = cosine_K[_sharing(on, balance)]
    return {f"{what}/{of}{names[k]}": cosine_K[k] for k in on} | ({f"{what}/worst": worst.min()} if len(worst) else {})


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
