"""Classifier-free guidance: the velocity is moved away from that of an empty prompt. Training never uses it; evaluation may."""

from __future__ import annotations

import numpy as np
import torch

from marble_core.models import DiffusionModel
from marble_core.types import Conditioning


def why_unguided(model: DiffusionModel) -> str:
    """Why this family is not sampled with classifier-free guidance, as a clause; empty where it is."""
    return str(getattr(model, "no_guidance", ""))


def classifier_free(v_BCHW: torch.Tensor, empty_BCHW: torch.Tensor, scale: float) -> torch.Tensor:
    """v_empty + scale (v_prompt - v_empty), as diffusers' pipelines with ``guidance_scale``."""
    return empty_BCHW + scale * (v_BCHW - empty_BCHW)


class Guided(DiffusionModel):
    """``model`` under guidance: ``classifier_free``, or what the family has in its place as ``guide``.

    Two forwards of the same size a call instead of one of twice the size, so that whatever batch fits without guidance fits with it.
    """

    def __init__(self, model: DiffusionModel, scale: float) -> None:
        self.model, self.scale = model, scale
        self.pipeline, self.transformer, self.lora_targets = model.pipeline, model.transformer, model.lora_targets
        self.latent_shape, self.flow_shift = model.latent_shape, model.flow_shift
        self.device, self.parts = model.device, model.parts
        self.empty = model.encode([getattr(model, "empty_prompt", "")])
        self.guide = getattr(model, "guide", classifier_free)

    def encode(self, prompts: list[str]) -> Conditioning:
        return self.model.encode(prompts)

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        v_BCHW = self.model.velocity(x_BCHW, t_B, conditioning)
        empty_BCHW = self.model.velocity(x_BCHW, t_B, self.empty[[0] * len(x_BCHW)])
        guided_BCHW: torch.Tensor = self.guide(v_BCHW, empty_BCHW, self.scale)
        return guided_BCHW

    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        return self.model.decode(x0_NCHW)
