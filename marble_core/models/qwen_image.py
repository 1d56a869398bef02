"""Qwen-Image through diffusers: packed latents, a language model as text encoder, an autoencoder of videos, and guidance that keeps norms."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

from marble_core.config.schema import ModelConfig
from marble_core.models.base import DiffusersModel, shift_by_size
from marble_core.models.guidance import classifier_free
from marble_core.models.lean import modulated
from marble_core.types import Conditioning, MarbleError

JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class LeanBlock(QwenImageTransformerBlock):
    """With one kernel and one rounding for ``x (1 + scale) + shift``, for precisions narrower than float32."""

    def _modulate(self, x: Any, mod_params: Any, index: Any = None) -> Any:
        if index is not None:  # of an image that is edited
            return super()._modulate(x, mod_params, index)
        shift, scale, gate = mod_params.chunk(3, dim=-1)
        return modulated(x, scale, shift), gate[:, None]


def lighten_blocks(transformer: Any, dtype: torch.dtype) -> None:
    """Beside ``lean.lighten``, for the transformer in that precision."""
    for block in transformer.transformer_blocks if dtype != torch.float32 else ():
        block.__class__ = LeanBlock


class QwenImage(DiffusersModel):
    """Qwen2.5-VL's tokens, without its images. The LoRA sits on the attention of both streams.

    Attention leaves out the tokens behind a prompt's end, so ``Conditioning.pooled``, for which Qwen-Image has no use, holds 1 for each
    token of the prompt and 0 behind it. The shift follows the image's size; the published schedule also ends at time .02, where our
    solvers end as for every family.
    """

    pipeline_class = "QwenImagePipeline"
    lora_targets = tuple(f"attn.{name}" for name in JOINT)
    t5 = "text_encoder"  # as large as T5-XXL and more: it may compute on the CPU as well
    empty_prompt = " "  # the model card's
    vae_format = torch.contiguous_format  # its convolutions have an axis of time

    def __init__(self, config: ModelConfig) -> None:
        if config.t5 == "none":
            raise MarbleError("Qwen-Image reads its prompts through its text encoder alone: set model.t5 to device or cpu.")
        super().__init__(config)
        _, height, width = self.latent_shape
        self.flow_shift = shift_by_size(self.pipeline.scheduler.config, height * width // 4)
        lighten_blocks(self.transformer, self.dtype)
        self._times = torch.empty(0)
        self.transformer.time_text_embed.time_proj.register_forward_pre_hook(self._exact_times)
        own = {"device": self.device, "dtype": self.vae.dtype}
        self._mean, self._deviation = (
            torch.tensor(self.vae.config[key], **own).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std")
        )

    def embed(self, prompts: list[str]) -> Conditioning:
        """As the pipeline's own encode_prompt, but always ``max_sequence_length`` tokens long, and without the logits of each token."""
        pipeline, start = self.pipeline, self.pipeline.prompt_template_encode_start_idx
        read = pipeline.tokenizer(
            [pipeline.prompt_template_encode.format(prompt) for prompt in prompts],
            max_length=start + self.config.max_sequence_length,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        ).to(self.t5_device)
        found = pipeline.text_encoder(input_ids=read.input_ids, attention_mask=read.attention_mask, use_cache=False)
        there = read.attention_mask[:, start:]
        return Conditioning(found.last_hidden_state[:, start:] * there[..., None], there.to(found.last_hidden_state.dtype))

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        B, _, H, W = x_BCHW.shape
        self._times = t_B
        v_BLD = self.transformer(
            hidden_states=self._packed(x_BCHW),
            timestep=t_B,
            encoder_hidden_states=conditioning.tokens,
            encoder_hidden_states_mask=conditioning.pooled > 0.5,
            img_shapes=[[(1, H // 2, W // 2)]] * B,
            return_dict=False,
        )[0]
        return self._unpacked(v_BLD)

    def guide(self, v_BCHW: torch.Tensor, empty_BCHW: torch.Tensor, scale: float) -> torch.Tensor:
        """Classifier-free guidance with each token's norm as it is without guidance: the pipeline's ``true_cfg_scale``."""
        guided_BLD = self._packed(classifier_free(v_BCHW, empty_BCHW, scale))
        norm_BL1, guided_BL1 = (v_BLD.norm(dim=-1, keepdim=True) for v_BLD in (self._packed(v_BCHW), guided_BLD))
        return self._unpacked(guided_BLD * (norm_BL1 / guided_BL1))

    def pixels(self, x0_NCHW: torch.Tensor) -> torch.Tensor:
        """The first frame of a video of one: without the caches of all frames before, which the autoencoder would fill for a second."""
        latents = x0_NCHW[:, :, None] * self._deviation + self._mean
        if self.config.vae_tiling:
            frames = self.vae.decode(latents, return_dict=False)[0]
        else:
            frames = self.vae.decoder(self.vae.post_quant_conv(latents))
        image: torch.Tensor = frames[:, :, 0]
        return image

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def _packed(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = self.pipeline._pack_latents(x_BCHW, *x_BCHW.shape)
        return packed

    def _unpacked(self, v_BLD: torch.Tensor) -> torch.Tensor:
        model = self.config
        v_BCFHW = self.pipeline._unpack_latents(v_BLD, model.height, model.width, self.pipeline.vae_scale_factor)
        v_BCHW: torch.Tensor = v_BCFHW[:, :, 0]
        return v_BCHW

    def _exact_times(self, _: torch.nn.Module, __: Any) -> tuple[torch.Tensor]:
        """In there times have the latents' precision, and 1000 times a bfloat16 time is off by up to 2."""
        return (self._times,)

    def _place_encoders(self) -> Any:
        """The language model alone: its head for words and its eyes are a seventh of it, and nobody reads what they say."""
        self.pipeline.text_encoder = self.pipeline.text_encoder.model.language_model
        return super()._place_encoders()

    def _tile(self) -> None:
        """As for the others: tiles of half the image's longer side, overlapping by a quarter of theirs; one image at a time."""
        side = max(self.config.height, self.config.width) // 2
        self.vae.enable_slicing()
        self.vae.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
