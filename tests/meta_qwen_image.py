"""Qwen-Image's transformer of any size on the device ``meta``, with its LoRA and inputs, for counting."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

from marble_core.config.loading import load_config
from marble_core.models import DiffusionModel
from marble_core.models.lean import lighten
from marble_core.models.policy import Policy
from marble_core.models.qwen_image import QwenImage, lighten_blocks
from marble_core.types import Conditioning


class Bare(QwenImage):
    """A transformer and nothing else of Qwen-Image, for images of ``side`` x ``side`` tokens."""

    def __init__(self, transformer: Any, dtype: torch.dtype, side: int) -> None:
        self.transformer, self.dtype = transformer, dtype
        self.config = cast(Any, SimpleNamespace(height=16 * side, width=16 * side))
        self.pipeline = SimpleNamespace(
            _pack_latents=QwenImagePipeline._pack_latents,
            _unpack_latents=QwenImagePipeline._unpack_latents,
            vae_scale_factor=8,
        )
        lighten(transformer, dtype)
        lighten_blocks(transformer, dtype)


def meta_qwen_image(
    blocks: int, heads: int, side: int, text: int, dtype: torch.dtype, rank: int, images: int = 2
) -> tuple[Policy, tuple[torch.Tensor, torch.Tensor, Conditioning]]:
    """The policy, and latents, times and conditioning of that many images; heads are 128 wide."""
    with torch.device("meta"):
        transformer: Any = QwenImageTransformer2DModel(num_layers=blocks, num_attention_heads=heads)
        transformer.requires_grad_(False).to(dtype)
        policy = Policy(cast(DiffusionModel, Bare(transformer, dtype, side)))
        policy.add_trainable(load_config("demo", overrides=[f"lora.rank={rank}"]))
        told = Conditioning(torch.randn(images, text, 3584, dtype=dtype), torch.ones(images, text, dtype=dtype))
        return policy, (torch.randn(images, 16, 2 * side, 2 * side), torch.rand(images), told)
