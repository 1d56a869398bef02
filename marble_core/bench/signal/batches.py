"""One batch of the bank: the gradients of every reward at a fixed policy, over groups of images and draws of (t, eps).

A batch draws its M prompts, and then Y x G images of each, as Y optimizer steps would that had the same prompts. Each of these
Y subgroups has its own advantages, and X draws of the times and of the noise. So a batch is Y X whole optimizer steps, which
share what their place says: prompts with each other, images with the draws beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from marble_core.algorithm import backward
from marble_core.algorithm.advantages import estimate
from marble_core.algorithm.diagnostics import rewards_not_finite
from marble_core.algorithm.split_half import split
from marble_core.config.methods import METHODS
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.models.rollout import collect
from marble_core.prompts import mix
from marble_core.rewards.scoring import BackgroundScores, score_all
from marble_core.runtime.seeding import derive
from marble_core.types import MarbleError, Prompt, RewardTable, Rollout, Scorer

MIXED = {name: method.mixing for name, method in METHODS.items() if method.mixing}


@dataclass(frozen=True)
class Design:
    """``subgroups`` Y of images and ``draws`` X of (t, eps) in each batch."""

    subgroups: int = 2
    draws: int = 2


def gradients(
    policy: Policy, scorers: Sequence[Scorer], prompts: Sequence[Prompt], config: RunConfig, design: Design, batch: int
) -> tuple[dict[str, torch.Tensor], RewardTable]:
    """By parameter name (X, Y, J, parameter's size), float32, without parameters whose gradients are all zero; and the rewards.

    J counts the rows of a step's ``SplitHalf``: the K rewards, then the methods of ``MIXED``, over half a; the same over half b.
    The KL is left out, for it is never balanced. Batches are independent: each has a seed of its own for its prompts, images,
    times and noise. Raises MarbleError where a reward is not finite.
    """
    images = config.rollout.images_per_prompt
    seed = derive(config.seed, "signal", batch)
    drawn = mix(prompts, config.rollout.prompts, design.subgroups * images, 0, seed, config.data.shares)
    every = np.arange(len(drawn))
    background = BackgroundScores(scorers, drawn.prompts_of(every), group_N=every // images)
    rollout = collect(policy, drawn, config.rollout, background.add)
    table = score_all(scorers, rollout.images_NHWC, background.prompts, background)
    if faults := rewards_not_finite(table, drawn):
        raise MarbleError(f"Batch {batch} of the bank cannot be used: {'; '.join(faults)}; mend the scorer.")
    subgroup_N = np.arange(len(drawn)) % (design.subgroups * images) // images
    rows = _rows(rollout, table, subgroup_N, config)
    loss = config.loss.model_copy(update={"kl_beta": 0.0})
    kept: dict[str, list[torch.Tensor]] = {}
    for draw in range(design.draws):
        again = replace(rollout, batch=replace(drawn, step=draw))  # the step seeds times and noise; the images are made
        passes = backward.per_reward(policy, again, rows, loss)
        for name, sums in passes.gradients.sums.items():
            kept.setdefault(name, []).append(sums[:-1].reshape(design.subgroups, -1, sums[0].numel()).float().cpu())
    stacked = {name: torch.stack(draws) for name, draws in kept.items()}
    return {name: g for name, g in stacked.items() if bool(g.any())}, table


def _rows(rollout: Rollout, table: RewardTable, subgroup_N: np.ndarray, config: RunConfig) -> backward.Rows:
    """Y x J rows over all N images of the batch; those of a subgroup see its images alone."""
    T, N, batch = config.loss.timesteps, len(subgroup_N), rollout.batch
    half_N = split(batch)
    weight_JN, A_JN = [], []
    for subgroup in range(subgroup_N.max() + 1):
        own = np.flatnonzero(subgroup_N == subgroup)
        part = table.of(own)
        advantages = [
            estimate(part, batch.group_N[own], config.loss.advantage_std, mixing).clamped(config.loss.advantage_max)[0]
            for mixing in MIXED.values()
        ]
        rows = backward.reward_rows(advantages[0], None, T)
        mixed = [backward.mean_row(each, T) for each in advantages]
        weight_Jn = np.concatenate([rows.weight_JN, *(row.weight_JN for row in mixed)])
        A_Jn = np.concatenate([rows.A_JN, *(row.A_JN for row in mixed)])
        for half in (0, 1):
            weight_JN.append(_spread(weight_Jn * (half_N[own] == half), own, N))
            A_JN.append(_spread(A_Jn, own, N))
    common_N = np.full(N, 1 / (N * T)) if config.balance.subtract_common else np.zeros(N)
    return backward.Rows(np.concatenate(weight_JN), np.concatenate(A_JN), common_N)


def _spread(values_Jn: np.ndarray, own: np.ndarray, N: int) -> np.ndarray:
    spread_JN = np.zeros((len(values_Jn), N))
    spread_JN[:, own] = values_Jn
    return spread_JN


def path_of(directory: Path, batch: int) -> Path:
    return directory / f"batch-{batch:03d}.safetensors"


def write(found: dict[str, torch.Tensor], table: RewardTable, path: Path) -> None:
    """The file is whole or not there."""
    means = {"rewards": json.dumps(table.means())}
    unfinished = path.with_suffix(".unfinished")
    save_file(found, unfinished, means)
    os.replace(unfinished, path)


def reward_means(path: Path) -> dict[str, float]:
    """Mean rewards of a batch's images."""
    with safe_open(path, "pt") as file:
        found: dict[str, float] = json.loads(file.metadata()["rewards"])
    return found


def layers(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
    """One parameter's gradients (Z, X, Y, J, size) of all Z batches at a time; zeros where a batch has none for it.

    Raises MarbleError where a file cannot be read.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            known = [set(file.keys()) for file in files]
            for name in sorted(set.union(*known)):
                parts = [file.get_tensor(name) if name in own else None for file, own in zip(files, known, strict=True)]
                like = next(part for part in parts if part is not None)
                yield torch.stack([torch.zeros_like(like) if part is None else part for part in parts])
    except (SafetensorError, OSError) as error:
        said = str(error).split("\n")[0].rstrip(".")
        raise MarbleError(
            f"A batch of the bank in {paths[0].parent} cannot be read ({said}); delete that file, it is made again."
        ) from None
