"""PickScore (arXiv 2305.01569): a CLIP trained on preferred images. See docs/rewards.md, section 2a."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.checkpoints import BATCH_SIZE, named
from marble_core.rewards.self_check import check_colors
from marble_core.types import Options, Prompt, RewardAsset, RewardCard

PICKSCORE = RewardAsset(
    "yuvalkirstain/PickScore_v1",
    licence="unknown (code MIT, the model page shows none)",
    size="3.9 GB",
    weights=986_109_441,
    activations=257 * 12 * 1280,
)
CLIP_H_PROCESSOR = RewardAsset(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "processor", "MIT", "3 MB", "tokenizer and image size only"
)


def _assets(options: Options) -> list[RewardAsset]:
    found = named(options, "checkpoint", PICKSCORE)
    if PICKSCORE in found and not options.get("processor"):
        return [*found, CLIP_H_PROCESSOR]
    return [*found, *named({"processor": None, **options}, "processor", CLIP_H_PROCESSOR)]


class PickScore:
    """exp(logit_scale) cos / 26, usually 0.70-0.95; applies to every prompt, comparable under one prompt only.

    The published checkpoint takes its tokenizer and image size from ``processor``, any other brings its own.
    """

    name = "pickscore"
    value_range = (-4.0, 4.0)
    card = RewardCard(
        assets=_assets,
        says="Human preference for an image under its prompt, by a CLIP ViT-H/14 trained on Pick-a-Pic: usually .70 to .95.",
    )

    def __init__(
        self,
        checkpoint: str = PICKSCORE.uri,
        processor: str | None = None,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        from marble_core.rewards.clip import load_clip

        if processor is None and checkpoint == PICKSCORE.uri:
            processor = CLIP_H_PROCESSOR.uri
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
