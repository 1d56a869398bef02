"""The seam: one file a model family, named in the configuration by its import path (``model.family``).

A family answers the questions of ``DiffusionModel``; nothing else of the project knows which model it trains. What diffusers'
pipelines have in common is in base.py: a family that is one of them has two methods to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from marble_core.types import Conditioning

if TYPE_CHECKING:
    import torch

    from marble_core.config.schema import ModelConfig
    from marble_core.runtime.offload import Offloaded


class DiffusionModel(Protocol):
    """A rectified-flow transformer (v = noise - x0) with its autoencoder and text encoders, all frozen.

    A step calls ``encode`` once for its prompts, ``velocity`` for every solver step and every micro-batch, ``decode`` once for
    every batch of images. LoRA adapters are added to ``transformer`` from outside; ``pipeline`` writes and reads them. A family
    that has no classifier-free guidance may say why, in a clause, as ``no_guidance`` (guidance.py). One with a guidance of its own has
    ``guide(v_BCHW, empty_BCHW, scale)`` and may name an ``empty_prompt``.
    """

    pipeline: Any  # diffusers' class with save_lora_weights and load_lora_weights
    transformer: torch.nn.Module
    lora_targets: tuple[str, ...]  # suffixes of the linear layers that carry a LoRA
    latent_shape: tuple[int, int, int]  # C, H, W
    flow_shift: float  # of the flow's sigmas: s' = shift s / (1 + (shift - 1) s)
    device: torch.device  # what velocity and decode take, and encode returns, lies here
    parts: Mapping[str, Sequence[Offloaded]]  # its modules by name, as marble_core.estimate calls them

    def __init__(self, config: ModelConfig) -> None:
        """Raises MarbleError where the model cannot be had, or cannot be what the configuration asks for."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """M prompts, in one batch a time, no gradient."""

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """v_BCHW in float32 at times t in (0, 1]; differentiable in the LoRA's layers."""

    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        """Clean latents to images_NHWC, uint8. An image does not depend on the others. Latents whose image is not finite are set to
        NaN, which is how their caller hears of it."""
