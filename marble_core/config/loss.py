"""The loss section. Marks as in schema.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marble_core.config.section import Section


class LossConfig(Section):
    name: Literal["nft", "awm", "awm_clipped"] = "nft"  # loss.py
    timesteps: int = Field(24, ge=1)  # [P] T, distinct timesteps of the rollout's, drawn for each image
    times: Literal["solver", "between"] = "solver"  # [N] these; [O] between: from each down to the next, the last to 0
    beta: float = Field(0.1, gt=0)  # [N] b: how far L+ and L- stand from v_old
    advantage_max: float = Field(5.0, gt=0)  # [N] A_max
    clip_range: float = Field(0.2, gt=0, lt=1)  # [O] of awm_clipped
    advantage_std: Literal["batch", "group"] = "batch"  # [N] [C] batch, in both releases; [P] group
    kl_beta: float = Field(1e-4, ge=0)  # [N]
    kl_fraction: float = Field(0.125, gt=0, le=1)  # [O] share of the micro-batches that carry the KL; 1 in the paper
    kl_states: Literal["policy", "base"] = "policy"  # [N] at noised images of the policy; [O] of the base: the forward KL
    kl_power: float = Field(0.0, gt=-1, le=8)  # [O] its weight at time t is (1 + power) t^power; above 0 noisy times count more
    micro_batch: int = Field(48, ge=0)  # images in a forward of the loss; 0: as many as fit, by estimate/

    @model_validator(mode="after")
    def _bounded(self) -> LossConfig:
        if self.name == "awm" and not self.kl_beta:
            raise ValueError("loss 'awm' is unbounded below for negative advantages, so loss.kl_beta must be above 0")
        if not self.kl_beta and (self.kl_states != "policy" or self.kl_power):
            raise ValueError("loss.kl_states and loss.kl_power are of the KL, so they need a loss.kl_beta above 0")
        return self
