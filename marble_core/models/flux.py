"""FLUX.1 through diffusers: packed latents, rotary position ids, and a guidance scale that the model was distilled to read."""

from __future__ import annotations

import torch

from marble_core.config.schema import ModelConfig
from marble_core.models.base import DiffusersModel, shift_by_size
from marble_core.types import Conditioning, MarbleError

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
GUIDANCE = 3.5  # FLUX.1-dev's own default: an input of the model, not a second forward


class Flux(DiffusersModel):
    """T5's tokens, and CLIP's pooled vector. The LoRA sits on the attention of both kinds of blocks."""

    pipeline_class = "FluxPipeline"
    lora_targets = tuple(f"attn.{name}" for name in JOINT)
    t5 = "text_encoder_2"
    no_guidance = "FLUX reads its guidance scale as an input, for which it was distilled, and knows no empty prompt"

    def __init__(self, config: ModelConfig) -> None:
        if config.t5 == "none":
            raise MarbleError("FLUX reads its prompts through T5 alone: set model.t5 to device or cpu.")
        super().__init__(config)
        self._embedded: tuple[torch.Tensor, ...] = ()
        self.transformer.time_text_embed.register_forward_pre_hook(self._exact)
        self.guidance_scale = GUIDANCE if self.transformer.config.guidance_embeds else 1.0
        _, height, width = self.latent_shape
        self.flow_shift = shift_by_size(self.pipeline.scheduler.config, height * width // 4)
        ids = self.pipeline._prepare_latent_image_ids(1, height // 2, width // 2, self.device, torch.float32)
        self.image_ids = ids  # (H/2 * W/2, 3): 0, row, column

    def embed(self, prompts: list[str]) -> Conditioning:
        pipeline, length = self.pipeline, self.config.max_sequence_length
        tokens = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=length, device=self.t5_device)
        return Conditioning(tokens, pipeline._get_clip_prompt_embeds(prompts, device=self.device))

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        B, C, H, W = x_BCHW.shape
        guidance_B = torch.full_like(t_B, GUIDANCE) if self.transformer.config.guidance_embeds else None
        self._embedded = tuple(1000 * value_B for value_B in (t_B, guidance_B) if value_B is not None)
        v_BLD = self.transformer(
            hidden_states=self.pipeline._pack_latents(x_BCHW, B, C, H, W),
            timestep=t_B,
            guidance=guidance_B,
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
            txt_ids=self.image_ids.new_zeros(conditioning.tokens.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return self.pipeline._unpack_latents(v_BLD, self.config.height, self.config.width, self.pipeline.vae_scale_factor)

    def _exact(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """In there times and guidance have the precision of the embedded latents: 1000 times a bfloat16 time is off by up to 4, and
        3500, which the guidance becomes, by 4."""
        return (*self._embedded, given[-1])  # the pooled prompt
