"""What an optimizer step changes, and what it uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from marble_core.algorithm.balancers import Balancer
from marble_core.algorithm.meter import Meter
from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.types import Scorer


@dataclass
class Learner:
    """What a step changes and what it uses. ``step`` counts all steps behind us, ``updates`` those that were not skipped.

    Args:
        config: The run's configuration.
        policy: The diffusion model with its LoRA: ``default`` is trained, ``old`` samples, ``ema`` is what is kept.
        scorers: The K rewards, in the order of ``config.rewards``.
        balancer: The method, which weighs the rewards' gradients.
        optimizer: Of the LoRA's weights.

    Example:
        >>> learner = start_learner(load_config("demo"))
        >>> learner.policy.save_adapter(Path("adapter"), learner.policy.ema)
    """

    config: RunConfig
    policy: Policy
    scorers: tuple[Scorer, ...]
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    step: int = 0
    updates: int = 0
    updating: bool = False  # between two states: neither to be saved nor to be interrupted
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per step, as the report draws it
    meter: Meter | None = None  # of balance.meter: time

    def __post_init__(self) -> None:
        if self.meter is None and self.config.balance.meter == "time":
            self.meter = Meter(self.config)
