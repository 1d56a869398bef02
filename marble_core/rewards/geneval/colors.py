"""GenEval's colours: CLIP ViT-L/14, zero-shot, on each object cut out by its mask. See docs/rewards.md, section 4.

It shares the weights of the other scorers that name the same CLIP. In fp32, where GenEval's script has fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from marble_core.prompts.geneval import COLORS
from marble_core.rewards.checkpoints import CLIP_L
from marble_core.rewards.clip import Clip, load_clip
from marble_core.rewards.geneval.rules import Detection
from marble_core.rewards.self_check import known_image
from marble_core.types import MarbleError

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")
GROUND = (153, 153, 153)  # around the object


class ClipColors:
    """The likeliest of GenEval's ten colours. ``quick_gelu: false`` puts GELU in its place, as open_clip from 2.29 on does."""

    color_names = COLORS

    def __init__(
        self, checkpoint: str = CLIP_L.uri, device: str | None = None, dtype: str = "fp32", quick_gelu: bool = True
    ) -> None:
        clip = load_clip(checkpoint, device=device, dtype=dtype)
        self.clip = clip if quick_gelu else _with_gelu(clip)
        self.modules = (self.clip.model,)
        self.settings = {"colors": checkpoint, "quick_gelu": quick_gelu}
        self._classifiers: dict[str, Tensor] = {}

    def colors(self, image_HWC: np.ndarray, detections: Sequence[Detection]) -> list[str]:
        if not detections:
            return []
        cut = [self.clip.preprocess(cut_out(image_HWC, detection)[None]) for detection in detections]
        features_ND = self.clip.encode(torch.cat(cut))
        classifiers = torch.stack([self._classifier(detection.label) for detection in detections])
        best_N = torch.einsum("nd,ncd->nc", features_ND, classifiers).argmax(-1)
        return [COLORS[i] for i in best_N.tolist()]

    def self_check(self) -> None:
        read = []
        for color in ("red", "blue"):
            picture = known_image(color)
            square = (picture != 255).any(-1)
            read += self.colors(picture, [Detection("square", 1.0, (16.0, 16.0, 48.0, 48.0), square)])
        if read != ["red", "blue"]:
            raise MarbleError(
                f"The colours of the reward 'geneval' take a red square for {read[0]} and a blue one for {read[1]}: "
                f"check the CLIP checkpoint {self.settings['colors']}."
            )

    def _classifier(self, label: str) -> Tensor:
        """(10, D): of each colour the normalised mean of its templates' features."""
        if label not in self._classifiers:
            texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
            features = self.clip.text_features(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._classifiers[label] = F.normalize(features.mean(1), dim=-1)
        return self._classifiers[label]


def cut_out(image_HWC: np.ndarray, detection: Detection) -> np.ndarray:
    """The object on plain grey where it has a mask, cropped to its box, whose edges PIL rounds; (h, w, C) uint8."""
    if detection.mask is not None:
        image_HWC = np.where(detection.mask[..., None], image_HWC, np.array(GROUND, np.uint8))
    return np.asarray(Image.fromarray(image_HWC).crop(detection.box))


@cache
def _with_gelu(clip: Clip) -> Clip:
    model: Any = deepcopy(clip.model).to(clip.device)  # which may wait elsewhere
    for tower in (model.text_model, model.vision_model):
        for layer in tower.encoder.layers:
            layer.mlp.activation_fn = nn.GELU()
    return Clip(model, clip.tokenizer, clip.pictures)
