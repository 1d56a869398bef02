"""CLIP checkpoints: one set of weights for every scorer that names the same one. Facts in docs/rewards.md, section 2.

Reads ``openai/clip-vit-large-patch14``, ``yuvalkirstain/PickScore_v1`` and the demo's small ones alike: a CLIPModel, a
tokenizer and an image processor's numbers, from a directory or the hub; and HPSv2's original file. Features are fp32, without
gradients, outside autocast.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel

from marble_core.rewards.checkpoints import BATCH_SIZE
from marble_core.rewards.weights.originals import load_hpsv2
from marble_core.rewards.weights.pretrained import default_device, first_line, load_pretrained, load_tokenizer, place
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError

MAX_TEXT_TOKENS = 77
CACHED_TEXTS = 20_000


class Clip:
    """A loaded CLIPModel. D is the width of its joint feature space."""

    def __init__(self, model: Any, tokenizer: Any, pictures: CLIPImageProcessorPil) -> None:
        self.model, self.tokenizer, self.pictures = model, tokenizer, pictures
        self.device, self.dtype = model.device, model.dtype
        self.text_length = min(MAX_TEXT_TOKENS, self.model.config.text_config.max_position_embeddings)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._last: tuple[Any, Tensor] | None = None

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale), about 100 for the large checkpoints."""
        return self.model.logit_scale.float().exp().item()

    @torch.no_grad()
    def image_features(
        self, images_NHWC: np.ndarray, resample: str = "bicubic", pad: bool = False, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Unit features (N, D) of uint8 RGB images, on the CPU. The last ones are kept, for the next scorer of the same step.

        ``pad`` fits the whole image in, as HPSv2 does, instead of its middle square.
        """
        resized = min(images_NHWC.shape[1:3]) != self.pictures.size["shortest_edge"]
        key = (hashlib.sha256(images_NHWC.tobytes()).digest(), images_NHWC.shape, resized and resample, pad)
        if self._last is None or self._last[0] != key:
            prepare = self.fit if pad else self.preprocess
            parts = [images_NHWC[i : i + batch_size] for i in range(0, len(images_NHWC), batch_size)]
            self._last = (key, torch.cat([self.encode(prepare(part, resample)) for part in parts]))
        return self._last[1]

    @torch.no_grad()
    def encode(self, pixels_NCHW: Tensor) -> Tensor:
        """Unit features (N, D) of normalised pixels, on the CPU."""
        pixels = pixels_NCHW.to(self.device, self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            features = self.model.get_image_features(pixel_values=pixels).pooler_output.float()
        return F.normalize(features, dim=-1).cpu()

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features (N, D) of prompts, each computed once, on the CPU."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._texts))
        for i in range(0, len(missing), BATCH_SIZE):
            part = missing[i : i + BATCH_SIZE]
            tokens = self.tokenizer(
                part, padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
            ).to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                features = self.model.get_text_features(
                    input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                ).pooler_output.float()
            self._texts.update(zip(part, F.normalize(features, dim=-1).cpu(), strict=True))
        found = torch.stack([self._texts[text] for text in texts])
        while len(self._texts) > CACHED_TEXTS:
            self._texts.popitem(last=False)
        return found

    def cosines(self, images_NHWC: np.ndarray, texts: Sequence[str], **how: Any) -> np.ndarray:
        """Cosine (N,) of each image and its own text, float64 in [-1, 1]. ``how``: image_features' other arguments."""
        return (self.image_features(images_NHWC, **how) * self.text_features(texts)).sum(-1).double().numpy()

    def preprocess(self, images_NHWC: np.ndarray, resample: str = "bicubic") -> Tensor:
        """Short edge to the processor's size, centre crop, mean and std: normalised pixels (N, C, H, W)."""
        crop = self.pictures.crop_size
        pixels = resize_and_crop(images_NHWC, self.pictures.size["shortest_edge"], (crop["height"], crop["width"]), resample)
        return normalise(pixels.float() / 255, self.pictures.image_mean, self.pictures.image_std)

    def fit(self, images_NHWC: np.ndarray, resample: str = "bicubic") -> Tensor:
        """Long edge to the processor's size, black around: normalised pixels (N, C, H, W). Resizes floats, as HPSv2 does."""
        side = self.pictures.size["shortest_edge"]
        pixels = _channels_first(images_NHWC).float() / 255
        height, width = pixels.shape[2:]
        if max(height, width) != side:
            target = [max(1, round(edge * side / max(height, width))) for edge in (height, width)]
            pixels = F.interpolate(pixels, target, mode=resample, antialias=True)
        down, across = side - pixels.shape[2], side - pixels.shape[3]
        pixels = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
        return normalise(pixels, self.pictures.image_mean, self.pictures.image_std)


def resize_and_crop(images_NHWC: np.ndarray, size: int, crop: tuple[int, int], resample: str) -> Tensor:
    """Short edge to ``size``, then the middle: uint8 pixels (N, C, H, W).

    Resizes uint8 tensors (so on the CPU) with antialiasing: within one grey level of PIL's result.
    """
    pixels = _channels_first(images_NHWC)
    height, width = pixels.shape[2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        target = (max(size, int(height * scale)), max(size, int(width * scale)))
        pixels = F.interpolate(pixels, target, mode=resample, antialias=True)
    top, left = (pixels.shape[2] - crop[0]) // 2, (pixels.shape[3] - crop[1]) // 2
    return pixels[:, :, top : top + crop[0], left : left + crop[1]]


def normalise(pixels_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    center, spread = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
    return (pixels_NCHW - center) / spread


def _channels_first(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images_NHWC)).permute(0, 3, 1, 2)


def load_clip(checkpoint: str, processor: str | None = None, device: str | None = None, dtype: str = "fp32") -> Clip:
    """The checkpoint, loaded once a process; ``processor`` where tokenizer and image size come from another one.

    A checkpoint that is a file is HPSv2's. ``device`` is the GPU where there is one, ``dtype`` one of fp32, bf16 and fp16.
    Raises MarbleError where the checkpoint cannot be had or read.
    """
    path = resolve(checkpoint)
    return _load(path, resolve(processor, Part.PROCESSOR) if processor else path, device or default_device(), dtype)


@cache
def _load(checkpoint: Path, processor: Path, device: str, dtype: str) -> Clip:
    model = load_hpsv2(checkpoint) if checkpoint.is_file() else load_pretrained(CLIPModel, checkpoint, "The CLIP checkpoint")
    model = place(model, device, dtype, f"The CLIP checkpoint {checkpoint}")
    tokenizer = load_tokenizer(processor, model.config.text_config.vocab_size, "The CLIP processor")
    try:
        return Clip(model, tokenizer, CLIPImageProcessorPil.from_pretrained(processor))
    except (OSError, ValueError) as error:
        raise MarbleError(f"The CLIP processor {processor} cannot be loaded: {first_line(error)}.") from error
