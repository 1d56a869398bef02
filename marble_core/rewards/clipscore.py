"""CLIPScore: the cosine of an image and its prompt, as logits / 100 of CLIP ViT-L/14. See shared/rewards.md, section 2c."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.clip import check_colors, load_clip
from marble_core.types import Prompt


class ClipScore:
    """Cosine in [-1, 1], usually 0.15-0.40 for ViT-L/14; applies to every prompt.

    ``resample`` is ``bilinear`` as in DiffusionNFT's release, or the model card's ``bicubic``.
    """

    name = "clipscore"
    value_range = (-1.0, 1.0)

    def __init__(
        self,
        checkpoint: str = "openai/clip-vit-large-patch14",
        resample: str = "bilinear",
        device: str | None = None,
    ) -> None:
        self.clip = load_clip(checkpoint, device=device)
        self.resample = resample

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.clip.cosines(images_NHWC, [prompt.text for prompt in prompts], self.resample)

    def self_check(self) -> None:
        check_colors(self)
