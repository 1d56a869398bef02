"""One file a model family. A family loads a diffusers pipeline and answers the questions of ``DiffusionModel``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from marble_core.types import Conditioning

if TYPE_CHECKING:
    import torch


class DiffusionModel(Protocol):
    """The seam for a model family: a rectified-flow transformer (v = noise - x0) with its autoencoder and text encoders."""

    transformer: torch.nn.Module
    lora_targets: tuple[str, ...]  # suffixes of the linear layers that carry a LoRA
    latent_shape: tuple[int, int, int]  # C, H, W
    flow_shift: float  # of the flow's sigmas

    def encode(self, prompts: list[str]) -> Conditioning:
        """M prompts, in one batch a time, no gradient."""

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """v_BCHW in float32 at times t in (0, 1]; differentiable in x and in ``conditioning.tokens``."""

    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        """Clean latents to images_NHWC, uint8."""
