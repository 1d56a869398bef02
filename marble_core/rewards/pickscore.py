"""PickScore (arXiv 2305.01569): a CLIP trained on preferred pictures. See docs/rewards.md, section 2a."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.clip import BATCH_SIZE, load_clip
from marble_core.rewards.self_check import check_colors
from marble_core.storage.catalogue import CLIP_H_PROCESSOR, PICKSCORE
from marble_core.types import Prompt


class PickScore:
    """exp(logit_scale) cos / 26, usually 0.70-0.95; applies to every prompt, comparable under one prompt only.

    The published checkpoint takes its tokenizer and image size from ``processor``, any other brings its own.
    """

    name = "pickscore"
    value_range = (-4.0, 4.0)

    def __init__(
        self,
        checkpoint: str = PICKSCORE,
        processor: str | None = None,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if processor is None and checkpoint == PICKSCORE:
            processor = CLIP_H_PROCESSOR
        self.clip = load_clip(checkpoint, processor, device, dtype)
        self.modules = (self.clip.model,)
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        texts = [prompt.text for prompt in prompts]
        return self.clip.logit_scale * self.clip.cosines(images_NHWC, texts, batch_size=self.batch_size) / 26

    def self_check(self) -> None:
        check_colors(self.name, self.score)
