"""Why a step could not be used, in words: the rewards, prompts and ranks whose numbers are not finite, missing, or all equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from marble_core.algorithm.update import Update
from marble_core.config.schema import RewardConfig
from marble_core.runtime import distributed
from marble_core.types import PromptBatch, RewardTable, Rollout

MOST = 3  # places that a sentence names


def rewards_not_finite(table: RewardTable, batch: PromptBatch) -> list[str]:
    """One sentence per value that is infinite, at most three; none where all are finite or do not apply."""
    return [
        f"reward {table.names[k]} is not finite for {_prompt(batch, batch.prompt_N[i])}"
        for i, k in np.argwhere(np.isinf(table.R_NK))[:MOST]
    ]


def unusable_rewards(table: RewardTable, batch: PromptBatch, rewards: Sequence[RewardConfig]) -> list[str]:
    """Why the step cannot be used: values that are infinite, or a reward that lacks more of its values than ``max_missing``, and more
    than one. The sentences about what is missing come beside them, see ``without_value``."""
    said = rewards_not_finite(table, batch)
    missing_NK = table.missing_NK
    limits = {reward.name: reward.max_missing for reward in rewards}
    for k, name in enumerate(table.names):
        lost, applies = int(missing_NK[:, k].sum()), int((missing_NK | table.mask_NK)[:, k].sum())
        if lost > max(1, limits[name] * applies):
            said.append(
                f"reward {name} has no value for {lost} of {applies} images, more than its max_missing = {limits[name]:g}"
            )
    return said


def without_value(table: RewardTable, batch: PromptBatch) -> list[str]:
    """One sentence per reward that has no value for some images to which it applies, with the commonest reasons."""
    said = []
    for k, name in enumerate(table.names):
        why = {i: reason for (i, j), reason in table.missing.items() if j == k}
        if why:
            applies = len(why) + int(table.mask_NK[:, k].sum())
            reasons = Counter(why.values()).most_common(MOST)
            text = "; ".join(f"{reason} ({count} times)" if count > 1 else reason for reason, count in reasons)
            first = _prompt(batch, batch.prompt_N[min(why)])
            said.append(f"reward {name} has no value for {len(why)} of {applies} images, the first of {first}: {text}")
    return said


def no_signal(table: RewardTable, batch: PromptBatch) -> list[str]:
    """That no reward tells the images of a prompt apart, and of each what its values are."""
    said = []
    for k, name in enumerate(table.names):
        values = table.R_NK[table.mask_NK[:, k], k]
        if len(values) and values.min() == values.max():
            said.append(f"{name} is {values[0]:.4g} for all {len(values)} images")
        elif len(values):
            said.append(f"{name} is equal within each prompt, from {values.min():.4g} to {values.max():.4g} between them")
    return [f"no reward tells the images of a prompt apart: {', '.join(said)}"]


def update_not_finite(update: Update, rollout: Rollout, names: Sequence[str]) -> str:
    """The rewards whose own gradients are not finite, where those were computed, and the prompts whose latents are not."""
    batch, index_N = rollout.batch, rollout.index_N
    bad_M = np.zeros(len(batch.prompts))
    np.add.at(bad_M, batch.prompt_N[index_N], [float(not x0.isfinite().all()) for x0 in rollout.x0_NCHW])
    said = [f"latents of {_prompt(batch, m)}" for m in np.flatnonzero(distributed.sum_array(bad_M))[:MOST]]
    if update.stats:
        squares_K = np.diag(update.stats.G_KK)
        said = [f"reward {name}" for name, square in zip(names, squares_K, strict=False) if not np.isfinite(square)] + said
    return f"the gradient is not finite{': ' if said else ''}{', '.join(said)}"


def _prompt(batch: PromptBatch, m: int) -> str:
    on = f" on rank {' and '.join(map(str, distributed.ranks_of(batch, m)))}" if distributed.world() > 1 else ""
    return f"the prompt {batch.prompts[m].text!r}{on}"
