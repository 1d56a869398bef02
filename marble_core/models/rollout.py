"""Sampling: the probability-flow ODE from noise to clean latents, without guidance, deterministic given its noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marble_core.config.schema import RolloutConfig
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.runtime import distributed
from marble_core.runtime.seeding import derive
from marble_core.types import PromptBatch, Rollout


def collect(
    policy: Policy, batch: PromptBatch, config: RolloutConfig, show: Callable[[np.ndarray], None] = lambda _: None
) -> Rollout:
    """The step's rollout: the policy ``old`` samples each prompt of this process's share ``images_per_prompt`` times."""
    index_N = distributed.images_of(batch).tolist()
    seeds = [derive(batch.seed, "rollout", batch.step, i) for i in index_N]
    texts = [batch.prompts[m].text for m in distributed.share(batch)]
    with policy.merged("old") as model:
        x0_NCHW, images_NHWC, t_S, conditioning = sample(
            model, texts, seeds, config.solver, config.steps, config.batch_size, show
        )
    return Rollout(batch, conditioning, x0_NCHW, t_S, images_NHWC, index_N[0])
