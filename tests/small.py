"""A small real policy (the demo's SD3 with few latents) and a rollout for tests of the mathematics."""

import numpy as np
import torch

from marble_core.config import RunConfig, load_config
from marble_core.policy import Policy
from marble_core.seeding import derive, noise
from marble_core.types import Prompt, PromptBatch, Rollout


def small_config(*overrides: str) -> RunConfig:
    defaults = ["model.precision=fp32", "lora.rank=4", "rollout.prompts=3", "rollout.images_per_prompt=2", "rollout.steps=4"]
    return load_config("demo", overrides=[*defaults, "loss.micro_batch=4", "loss.kl_fraction=1.0", *overrides])


def small_policy(config: RunConfig, perturb: float = 0.0) -> Policy:
    """A trainable policy; ``perturb`` moves ``default`` and ``old`` apart, and both away from the reference."""
    policy = Policy.load(config)
    policy.add_trainable(config)
    if perturb:
        generator = torch.Generator().manual_seed(1)
        for adapter in ("default", "old"):
            for p in policy.parameters_of(adapter).values():
                p.data.add_(perturb * torch.randn(p.shape, generator=generator))
        policy.old_is_default = False
    return policy


def small_batch(config: RunConfig) -> PromptBatch:
    prompts = (
        Prompt("a red circle on a blue background", "general"),
        Prompt('a sign that says "CAT"', "ocr", target="CAT"),
        Prompt("two green squares", "geneval", include=({"class": "square", "count": 2, "color": "green"},)),
    )
    return PromptBatch(prompts[: config.rollout.prompts], config.rollout.images_per_prompt, step=0, seed=config.seed)


def small_rollout(policy: Policy, config: RunConfig) -> Rollout:
    batch = small_batch(config)
    x0 = noise([derive(7, i) for i in range(len(batch))], policy.model.latent_shape)
    conditioning = policy.model.encode([p.text for p in batch.prompts])
    t_S = torch.linspace(1, 1 / config.rollout.steps, config.rollout.steps)
    return Rollout(batch, conditioning, x0, t_S, np.zeros((len(batch), 8, 8, 3), np.uint8))
