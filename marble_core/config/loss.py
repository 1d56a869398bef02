"""The loss section. Marks as in schema.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marble_core.config.section import Section


class LossConfig(Section):
    name: Literal["nft", "awm", "awm_clipped"] = "nft"
    """nft: DiffusionNFT's [N]; awm, awm_clipped: advantage-weighted matching [O]."""
    timesteps: int = Field(24, ge=1)
    """Distinct timesteps T of the rollout's, drawn per image. [P]"""
    times: Literal["solver", "between"] = "solver"
    """solver: those of the solver [N]; between: anywhere from each down to the next, the last to 0 [O]."""
    beta: float = Field(0.1, gt=0)
    """How far L+ and L- stand from v_old. [N]"""
    advantage_max: float = Field(5.0, gt=0)
    """Bound of an advantage, in standard deviations. [N]"""
    clip_range: float = Field(0.2, gt=0, lt=1)
    """Range of awm_clipped, as a share. [O]"""
    advantage_std: Literal["batch", "group"] = "batch"
    """Standard deviation that an advantage is divided by: batch, as both releases do [N], [C]; group [P]."""
    kl_beta: float = Field(1e-4, ge=0)
    """Weight of the KL to the base; 0: none. [N]"""
    kl_fraction: float = Field(0.125, gt=0, le=1)
    """Share of the micro-batches that carry the KL [O]; 1 in the paper."""
    kl_states: Literal["policy", "base"] = "policy"
    """policy: the KL at noised images of the policy [N]; base: of the base, the forward KL [O]."""
    kl_power: float = Field(0.0, gt=-1, le=8)
    """The KL's weight at time t is (1 + power) t^power: above 0 noisy times count more. [O]"""
    micro_batch: int = Field(48, ge=0)
    """Images in a forward pass of the loss; 0: as many as the estimate says fit. [O]"""

    @model_validator(mode="after")
    def _bounded(self) -> LossConfig:
        if self.name == "awm" and not self.kl_beta:
            raise ValueError("loss 'awm' is unbounded below for negative advantages, so loss.kl_beta must be above 0")
        if not self.kl_beta and (self.kl_states != "policy" or self.kl_power):
            raise ValueError("loss.kl_states and loss.kl_power are of the KL, so they need a loss.kl_beta above 0")
        return self
