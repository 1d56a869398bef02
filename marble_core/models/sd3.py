"""Stable Diffusion 3 and 3.5, and the demo model, through diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from marble_core.assets import Part, resolve
from marble_core.config import ModelConfig
from marble_core.types import Conditioning, MarbleError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class SD3:
    """The pipeline's parts in float32, frozen; the transformer's forward runs under the configured autocast."""

    lora_targets = tuple(f"attn.{name}" for name in ATTENTION)

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.pipeline = _load_pipeline(config)
        self.transformer = self.pipeline.transformer.requires_grad_(False)
        self.vae = self.pipeline.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        factor = self.pipeline.vae_scale_factor
        self.latent_shape = (self.transformer.config.in_channels, config.height // factor, config.width // factor)
        self.flow_shift = float(self.pipeline.scheduler.config.shift)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=self.config.max_sequence_length
        )
        return Conditioning(tokens.float(), pooled.float())

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        with self._autocast():
            out = self.transformer(
                hidden_states=x_BCHW,
                timestep=t_B * 1000,
                encoder_hidden_states=conditioning.tokens,
                pooled_projections=conditioning.pooled,
                return_dict=False,
            )[0]
        return out.float()

    @torch.no_grad()
    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        latents = x0_NCHW / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images = self.vae.decode(latents.contiguous(memory_format=torch.channels_last), return_dict=False)[0]
        images = self.pipeline.image_processor.postprocess(images, output_type="np")
        return (images * 255).round().astype("uint8")

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        return torch.autocast(next(self.transformer.parameters()).device.type, dtype)


def _load_pipeline(config: ModelConfig) -> Any:
    from diffusers import StableDiffusion3Pipeline

    source = resolve(config.path, Part.PIPELINE, config.revision)
    if not (source / "model_index.json").is_file():
        raise MarbleError(f"The base model {config.path} has no model_index.json; give a directory that diffusers saved.")
    with _quiet():
        pipeline = StableDiffusion3Pipeline.from_pretrained(source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and deprecation notes of the libraries have no place in a stage's log."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
