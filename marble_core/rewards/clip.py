"""CLIP checkpoints: one set of weights for every scorer that names the same one. Facts in shared/rewards.md, section 2.

Reads ``openai/clip-vit-large-patch14``, ``yuvalkirstain/PickScore_v1`` and the demo's small ones alike: a CLIPModel, a
tokenizer and an image processor's numbers, from a directory or the hub. Features are fp32, without gradients, outside
autocast.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from marble_core.assets import resolve
from marble_core.types import MarbleError, Prompt, Scorer

MAX_TEXT_TOKENS = 77
CACHED_TEXTS = 20_000
BATCH_SIZE = 64  # pictures or texts in a forward pass


class Clip:
    """A loaded checkpoint. D is the width of its joint feature space."""

    def __init__(self, checkpoint: str, processor: str, device: torch.device) -> None:
        self.model = CLIPModel.from_pretrained(checkpoint).float().eval().requires_grad_(False).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(processor)
        self.pictures = CLIPImageProcessorPil.from_pretrained(processor)
        self.device = device
        self.text_length = min(MAX_TEXT_TOKENS, self.model.config.text_config.max_position_embeddings)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._last: tuple[Any, Tensor] | None = None

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale), about 100 for the large checkpoints."""
        return self.model.logit_scale.exp().item()

    @torch.no_grad()
    def image_features(self, images_NHWC: np.ndarray, resample: str = "bicubic") -> Tensor:
        """Unit features (N, D) of uint8 RGB pictures. The last ones are kept, for the next scorer of the same step."""
        resized = min(images_NHWC.shape[1:3]) != self.pictures.size["shortest_edge"]
        key = (hashlib.sha256(images_NHWC.tobytes()).digest(), images_NHWC.shape, resized and resample)
        if self._last is None or self._last[0] != key:
            found = []
            for i in range(0, len(images_NHWC), BATCH_SIZE):
                pixels = self.preprocess(images_NHWC[i : i + BATCH_SIZE], resample)
                with torch.autocast(self.device.type, enabled=False):
                    found.append(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output)
            self._last = (key, F.normalize(torch.cat(found), dim=-1).cpu())
        return self._last[1]

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features (N, D) of prompts, each computed once."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._texts))
        for i in range(0, len(missing), BATCH_SIZE):
            part = missing[i : i + BATCH_SIZE]
            tokens = self.tokenizer(
                part, padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
            ).to(self.device)
            with torch.autocast(self.device.type, enabled=False):
                features = self.model.get_text_features(
                    input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                ).pooler_output
            self._texts.update(zip(part, F.normalize(features, dim=-1).cpu(), strict=True))
        found = torch.stack([self._texts[text] for text in texts])
        while len(self._texts) > CACHED_TEXTS:
            self._texts.popitem(last=False)
        return found

    def cosines(self, images_NHWC: np.ndarray, texts: Sequence[str], resample: str = "bicubic") -> np.ndarray:
        """Cosine (N,) of each picture and its own text, float64 in [-1, 1]."""
        return (self.image_features(images_NHWC, resample) * self.text_features(texts)).sum(-1).double().numpy()

    def preprocess(self, images_NHWC: np.ndarray, resample: str) -> Tensor:
        """Short edge to the processor's size, centre crop, mean and std: normalised pixels (N, C, H, W).

        Resizes uint8 tensors (so on the CPU) with antialiasing: within one grey level of PIL's result.
        """
        size = self.pictures.size["shortest_edge"]
        crop = self.pictures.crop_size
        pixels = torch.from_numpy(np.array(images_NHWC)).permute(0, 3, 1, 2)
        height, width = pixels.shape[2:]
        if min(height, width) != size:
            scale = size / min(height, width)
            target = (max(size, int(height * scale)), max(size, int(width * scale)))
            pixels = F.interpolate(pixels, target, mode=resample, antialias=True)
        top, left = (pixels.shape[2] - crop["height"]) // 2, (pixels.shape[3] - crop["width"]) // 2
        pixels = pixels[:, :, top : top + crop["height"], left : left + crop["width"]]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.pictures.image_mean, self.pictures.image_std))
        return (pixels.float() / 255 - mean) / std


def load_clip(checkpoint: str, processor: str | None = None, device: str | None = None) -> Clip:
    """The checkpoint, loaded once a process; ``processor`` where tokenizer and image size come from another one.

    ``device`` is the GPU where there is one. Raises MarbleError where the checkpoint cannot be read.
    """
    return _load(
        str(resolve(checkpoint)),
        str(resolve(processor or checkpoint)),
        device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


@cache
def _load(checkpoint: str, processor: str, device: str) -> Clip:
    try:
        return Clip(checkpoint, processor, torch.device(device))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise MarbleError(f"The CLIP checkpoint {checkpoint} cannot be loaded: {reason}.") from error


def known_picture(color: str, side: int = 64) -> np.ndarray:
    """A square of that colour on white, (side, side, C) uint8."""
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(color, (side // 4, side // 4, side - side // 4, side - side // 4))
    return np.asarray(picture)


def check_colors(scorer: Scorer) -> None:
    """Raise MarbleError unless pictures of a red and of a blue square each score higher with their own prompt."""
    colors = ("red", "blue")
    pairs = [(picture, prompt) for picture in colors for prompt in colors]
    images_NHWC = np.stack([known_picture(picture) for picture, _ in pairs])
    values = scorer.score(images_NHWC, [Prompt(f"a {prompt} square", "general") for _, prompt in pairs])
    own_red, false_red, false_blue, own_blue = values
    if not (own_red > false_red and own_blue > false_blue):
        raise MarbleError(
            f"The reward {scorer.name!r} cannot tell a red square from a blue one ({own_red:.3f} against {false_red:.3f}, "
            f"{own_blue:.3f} against {false_blue:.3f}): check its checkpoint."
        )
