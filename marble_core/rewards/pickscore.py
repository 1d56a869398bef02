"""PickScore (arXiv 2305.01569): a CLIP trained on preferred pictures. See shared/rewards.md, section 2a."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.clip import check_colors, load_clip
from marble_core.types import Prompt


class PickScore:
    """exp(logit_scale) cos / 26, usually 0.70-0.95; applies to every prompt, comparable under one prompt only."""

    name = "pickscore"
    value_range = (-4.0, 4.0)

    def __init__(
        self,
        checkpoint: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        device: str | None = None,
    ) -> None:
        if processor is None and checkpoint == "yuvalkirstain/PickScore_v1":
            processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        self.clip = load_clip(checkpoint, processor, device)

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.clip.logit_scale * self.clip.cosines(images_NHWC, [prompt.text for prompt in prompts]) / 26

    def self_check(self) -> None:
        check_colors(self)
