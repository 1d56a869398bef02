"""What is watched while a run trains, and what an alarm does: docs/watching.md. It changes no number of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from marble_core.config.section import Section

Witness = Literal["edge_density", "colour_entropy", "dark_share", "latent_norm"]

SEEN_TO_MOVE: tuple[Witness, ...] = ("edge_density", "colour_entropy")  # under hacking alone: docs/watching.md, section 3


class WatchConfig(Section):
    every: int = Field(10, ge=0)
    """Steps from one look at held-out prompts to the next; 0: none. [O]"""
    prompts: int = Field(16, ge=2)
    """Prompts of each source in a look, which neither training nor the evaluation has. [O]"""
    images: int = Field(4, ge=2)
    """Images of each of these prompts. [O]"""
    on_alarm: Literal["warn", "stop"] = "warn"
    """stop: end at the checkpoint before a hacking alarm, and evaluate that one. [O]"""
    trusted: tuple[str, ...] = ()
    """Rewards whose fall is a hacking alarm; empty: all. [O]"""
    witnesses: tuple[Witness, ...] = SEEN_TO_MOVE
    """Properties of images whose change is a hacking alarm: docs/watching.md. [O]"""
    range: float = Field(0.05, gt=0)
    """Standard deviations of the base by which such a property may differ from it. [O]"""

    def check(self, rewards: Sequence[str], keep_best: bool) -> None:
        """Raises ValueError where it does not fit the rest of the configuration."""
        if unknown := set(self.trusted) - set(rewards):
            raise ValueError(f"watch.trusted names the reward {min(unknown)!r}, but the rewards are {', '.join(rewards)}")
        if keep_best and not self.every:
            raise ValueError("train.keep_best chooses by the looks of watch, so it needs watch.every above 0")
