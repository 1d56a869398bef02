"""Stable Diffusion 3 and 3.5 (Medium and Large), and the demo model, through diffusers."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from marble_core.models.base import DiffusersModel
from marble_core.types import Conditioning

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class SD3(DiffusersModel):
    """Two CLIP encoders and T5. The LoRA sits on the joint attention only [N]: not on the second attention of Medium's first 13
    blocks (``attn2``); the last block has no ``to_add_out``, so Medium's 24 blocks have 191 such layers."""

    pipeline_class = "StableDiffusion3Pipeline"
    lora_targets = tuple(f"attn.{name}" for name in ATTENTION)
    t5 = "text_encoder_3"

    def embed(self, prompts: list[str]) -> Conditioning:
        """As the pipeline's own encode_prompt, which has all encoders on one device. Without T5 its tokens are zeros [SD3's paper]."""
        pipeline, length = self.pipeline, self.config.max_sequence_length
        clip = [pipeline._get_clip_prompt_embeds(prompts, device=self.device, clip_model_index=i) for i in (0, 1)]
        tokens = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=length, device=self.t5_device).to(self.device)
        clip_tokens = torch.cat([tokens_of for tokens_of, _ in clip], dim=-1)
        clip_tokens = F.pad(clip_tokens, (0, tokens.shape[-1] - clip_tokens.shape[-1]))
        return Conditioning(torch.cat([clip_tokens, tokens], dim=1), torch.cat([pooled for _, pooled in clip], dim=-1))

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.transformer(
            hidden_states=x_BCHW,
            timestep=t_B * 1000,
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]
