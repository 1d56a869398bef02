"""CLIPScore: the cosine of an image and its prompt, as logits / 100 of CLIP ViT-L/14. See docs/rewards.md, section 2c."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.checkpoints import BATCH_SIZE, CLIP_L, named
from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, Prompt, RewardCard


class ClipScore:
    """Cosine in [-1, 1], usually 0.15-0.40 for ViT-L/14; applies to every prompt.

    ``resample`` is ``bilinear`` as in DiffusionNFT's release, or the model card's ``bicubic``.
    """

    name = "clipscore"
    value_range = (-1.0, 1.0)
    card = RewardCard(
        assets=lambda options: named(options, "checkpoint", CLIP_L),
        says="How well the image fits its prompt: the cosine of CLIP ViT-L/14, usually .15 to .40.",
    )

    def __init__(
        self,
        checkpoint: str = CLIP_L.uri,
        resample: str = "bilinear",
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if resample not in ("bilinear", "bicubic"):
            raise MarbleError(f"The reward 'clipscore' cannot resample by {resample!r}; choose bilinear or bicubic.")
        from marble_core.rewards.clip import load_clip

        self.clip = load_clip(checkpoint, device=device, dtype=dtype)
        self.modules = (self.clip.model,)
        self.resample, self.batch_size = resample, batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        texts = [prompt.text for prompt in prompts]
        return self.clip.cosines(images_NHWC, texts, resample=self.resample, batch_size=self.batch_size)

    def self_check(self) -> None:
        check_colors(self.name, self.score)
