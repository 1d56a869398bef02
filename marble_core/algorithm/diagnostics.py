"""Why a step could not be used, in words: the rewards, prompts and ranks whose numbers are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.algorithm.update import Update
from marble_core.runtime import distributed
from marble_core.types import PromptBatch, RewardTable, Rollout

MOST = 3  # places that a sentence names


def rewards_not_finite(table: RewardTable, batch: PromptBatch) -> list[str]:
    """One sentence per value that is infinite, at most three; none where all are finite or do not apply."""
    return [
        f"reward {table.names[k]} is not finite for {_prompt(batch, batch.prompt_N[i])}"
        for i, k in np.argwhere(np.isinf(table.R_NK))[:MOST]
    ]


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
    on = f" on rank {distributed.rank_of(batch, m)}" if distributed.world() > 1 else ""
    return f"the prompt {batch.prompts[m].text!r}{on}"
