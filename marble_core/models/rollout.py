"""Sampling: the probability-flow ODE from noise to clean latents, without guidance, deterministic given its noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.config.training import RolloutConfig
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.runtime import distributed
from marble_core.runtime.seeding import derive
from marble_core.types import Prompt, PromptBatch, Rollout


def collect(
    policy: Policy, batch: PromptBatch, config: RolloutConfig, show: Callable[[np.ndarray], None] = lambda _: None
) -> Rollout:
    """The step's rollout: the policy ``old`` samples this process's images, of each prompt ``images_per_prompt`` on all together."""
    index_N = distributed.images_of(batch)
    seeds = [derive(batch.seed, "rollout", batch.step, i) for i in index_N.tolist()]
    texts, owner_N = _texts(batch, index_N)
    with policy.merged("old") as model:
        x0_NCHW, images_NHWC, t_S, conditioning = sample(
            model, texts, seeds, config.solver, config.steps, config.batch_size, show, owner_N=owner_N
        )
    return Rollout(batch, conditioning, x0_NCHW, t_S, images_NHWC, int(index_N[0]))


def _texts(batch: PromptBatch, index_N: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The prompts of these images, which follow each other, and which of them is each image's."""
    m_N = batch.prompt_N[index_N]
    return [batch.prompts[m].text for m in range(m_N[0], m_N[-1] + 1)], m_N - m_N[0]


def beside_base(rollout: Rollout, policy: Policy, prompts: Sequence[Prompt], config: RunConfig) -> Rollout:
    """With images of the base, where the KL is taken at those (``loss.kl_states``): as many as the step's, of prompts that lie evenly
    among all, and the same ones in every step.

    They are a function of the seed and the prompts, sampled when a process first needs them, so a checkpoint holds none of them and
    a run that goes on has the same.
    """
    if config.loss.kl_states == "policy":
        return rollout
    if policy.base_rollout is None:
        count, r = config.rollout.prompts, config.rollout
        chosen = tuple(prompts[m * len(prompts) // count] for m in range(count))
        batch = PromptBatch(chosen, r.images_per_prompt, 0, derive(config.seed, "base"), rollout.batch.together)
        index_N = distributed.images_of(batch)
        texts, owner_N = _texts(batch, index_N)
        seeds = [derive(batch.seed, "rollout", i) for i in index_N.tolist()]
        with policy.using("off") as model:
            x0_NCHW, images_NHWC, t_S, conditioning = sample(
                model, texts, seeds, r.solver, r.steps, r.batch_size, owner_N=owner_N
            )
        policy.base_rollout = Rollout(batch, conditioning, x0_NCHW, t_S, images_NHWC[:0], int(index_N[0]))
    return replace(rollout, base=policy.base_rollout)
