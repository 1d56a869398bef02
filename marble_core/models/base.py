"""What the model families of diffusers share: loading, precision, where the parts lie, decoding."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError

from marble_core.config.schema import ModelConfig
from marble_core.models.lean import lighten
from marble_core.models.sampling import finite
from marble_core.runtime import distributed
from marble_core.runtime.offload import HOST, Offloaded
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import require_pipeline, resolve
from marble_core.types import Conditioning, MarbleError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED_VERSIONS = 32
ENCODED_TOKENS = 4096  # at once, 16 prompts of 256: T5-XXL takes .1 GB for each of these
DECODED_PIXELS = 2**20  # at once: the VAE of SD3 takes about 0.8 GB for each quarter of it
DECODED_IMAGES = 36  # at once: from 64 on diffusers' upsampling leaves channels_last, and the decoder takes a third longer


class DiffusersModel:
    """A pipeline of diffusers, frozen, on this process's device: transformer and text encoders in the configured precision, the
    VAE in float32, for half precision leaves it with black and banded images.

    A family says ``pipeline_class``, ``lora_targets``, ``t5`` and ``no_guidance``, and has ``embed`` and ``predict``. A forward is in
    the transformer's precision throughout, without autocast: ``predict`` gets latents of it, and times in float32.

    Args:
        config: The section ``model``.
        pipeline: One that is there already, instead of the one that ``config.path`` names.

    Raises:
        MarbleError: The pipeline cannot be had, or is not of this family.

    Example:
        >>> class MyModel(DiffusersModel):  # examples/custom_model.py has it whole
        ...     pipeline_class = "StableDiffusion3Pipeline"
        ...     lora_targets = ("attn.to_q", "attn.to_k", "attn.to_v")
    """

    pipeline_class: ClassVar[str]  # its name in diffusers
    t5: ClassVar[str | None] = None  # the T5 encoder's name in the pipeline
    no_guidance: ClassVar[str] = ""  # why it is not sampled with an empty prompt beside the prompt; empty where it is
    vae_format: ClassVar[torch.memory_format] = torch.channels_last
    lora_targets: tuple[str, ...]
    guidance_scale = 1.0  # that a user's pipeline must be given to sample as it was trained

    def __init__(self, config: ModelConfig, pipeline: Any = None) -> None:
        """``pipeline`` is one that is there already, instead of the one that ``config.path`` names."""
        self.config, self.device, self.dtype = config, distributed.device(), DTYPES[config.precision]
        self.pipeline = self._load() if pipeline is None else pipeline
        self.transformer = self.pipeline.transformer.requires_grad_(False).to(self.device)
        lighten(self.transformer, self.dtype)
        self.vae = self.pipeline.vae.requires_grad_(False).to(self.device, memory_format=self.vae_format)
        self.latent_shape = self._latent_shape()
        self.flow_shift = float(self.pipeline.scheduler.config.shift)
        self.encoders = self._place_encoders()
        staying = {"transformer": self.transformer, "VAE": self.vae}
        self.parts = {name: (Offloaded([part], waits=False),) for name, part in staying.items()}
        self.parts["text encoders"] = (self.encoders,)
        if config.vae_tiling:
            self._tile()
        if config.compile:
            self._compile()

    def embed(self, prompts: list[str]) -> Conditioning:
        """The M prompts as the text encoders see them; T5 computes on ``t5_device``."""
        raise NotImplementedError

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The transformer's velocity v_BCHW at times t_B in (0, 1], in float32, for latents in the transformer's precision."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        with self.encoders:
            n = max(1, ENCODED_TOKENS // self.config.max_sequence_length)
            parts = [self.embed(list(prompts[start : start + n])) for start in range(0, len(prompts), n)]
        tokens, pooled = (torch.cat(each) for each in zip(*((part.tokens, part.pooled) for part in parts), strict=True))
        return Conditioning(tokens.to(self.device, self.dtype), pooled.to(self.device, self.dtype))

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.predict(x_BCHW.to(self.dtype), t_B, conditioning).float()

    @torch.no_grad()
    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        """Latents whose image is not finite become NaN: uint8 could not tell it from a black one."""
        at_once = min(DECODED_IMAGES, max(1, DECODED_PIXELS // (self.config.height * self.config.width)))
        return np.concatenate([self._decode(part) for part in x0_NCHW.split(at_once)])

    @property
    def t5_device(self) -> torch.device:
        return HOST if self.config.t5 == "cpu" else self.device

    def pixels(self, x0_NCHW: torch.Tensor) -> torch.Tensor:
        """Images of the VAE, (N, 3, height, width), about -1 to 1, in its precision."""
        latents = x0_NCHW / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0)
        images: torch.Tensor = self.vae.decode(latents.contiguous(memory_format=self.vae_format), return_dict=False)[0]
        return images

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def _decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        images = self.pixels(x0_NCHW)
        x0_NCHW[~finite(images)] = torch.nan
        shown = self.pipeline.image_processor.denormalize(images.float())  # to [0, 1]
        return (
            (shown * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        )  # a quarter of the bytes cross to the host

    def _load(self) -> Any:
        import diffusers

        config = self.config
        source = resolve(config.path, Part.PIPELINE, config.revision)
        require_pipeline(source, config.path)
        left_out = {}
        if config.t5 == "none" and self.t5:
            left_out = {self.t5: None, self.t5.replace("text_encoder", "tokenizer"): None}
        try:
            with _quiet():
                pipeline = getattr(diffusers, self.pipeline_class).from_pretrained(
                    source, torch_dtype={"default": self.dtype, "vae": torch.float32}, use_safetensors=True, **left_out
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise MarbleError(f"The base model {config.path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _latent_shape(self) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        for name, size in (("height", self.config.height), ("width", self.config.width)):
            if size % (2 * factor):  # a patch of the transformer is two latents wide
                near = max(1, round(size / (2 * factor))) * 2 * factor
                raise MarbleError(f"model.{name} = {size} must be a multiple of {2 * factor} for this model: take {near}.")
        return (self.latent_channels, self.config.height // factor, self.config.width // factor)

    def _place_encoders(self) -> Offloaded:
        """T5 on the CPU belongs to none that could leave the device."""
        names = [n for n in self.pipeline.components if n.startswith("text_encoder") and getattr(self.pipeline, n) is not None]
        on_device = []
        for name in names:
            encoder = getattr(self.pipeline, name).requires_grad_(False)
            encoder.to(self.t5_device if name == self.t5 else self.device)
            if not (name == self.t5 and self.config.t5 == "cpu"):
                on_device.append(encoder)
        return Offloaded(on_device, waits=self.config.offloads_encoders)

    def _tile(self) -> None:
        """Tiles of half the image's longer side, which overlap by a quarter of theirs; one image at a time."""
        self.vae.enable_slicing()
        self.vae.enable_tiling()
        self.vae.tile_latent_min_size = max(self.latent_shape[1:]) // 2
        self.vae.tile_sample_min_size = self.vae.tile_latent_min_size * self.pipeline.vae_scale_factor

    def _compile(self) -> None:
        """Block by block, so that equal ones share their code: a version each for kind of block, adapter, and one or more images."""
        import torch._dynamo

        if self.device.type == "cuda" and not any(
            shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang")
        ):
            raise MarbleError(
                "model.compile = true needs a C compiler, with which Triton builds its launchers, and this machine has none: install "
                "gcc, or set model.compile=false."
            )
        torch._dynamo.config.recompile_limit = max(COMPILED_VERSIONS, torch._dynamo.config.recompile_limit)
        for child in self.transformer.children():
            if isinstance(child, torch.nn.ModuleList):
                for block in child:
                    block.compile()


def shift_by_size(scheduler: Mapping[str, Any], tokens: int) -> float:
    """Of a model that bends its times the more, the more tokens an image has: its exp(mu) is what others call the shift."""
    if not scheduler["use_dynamic_shifting"]:
        return float(scheduler["shift"])
    least, most = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    slope = (scheduler["max_shift"] - scheduler["base_shift"]) / (most - least)
    mu = scheduler["base_shift"] + slope * (tokens - least)
    return float(mu if scheduler["time_shift_type"] == "linear" else math.exp(mu))


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' loading bars and notes have no place in a stage's log, nor, from then on, diffusers' note of each prompt that
    is too long: prepare has named those."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
