"""HPSv2.1 (arXiv 2306.09341): a CLIP ViT-H/14 trained on human preferences. See docs/rewards.md, section 2b."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from marble_core.rewards.checkpoints import BATCH_SIZE, CLIP_L, named
from marble_core.rewards.self_check import check_colors
from marble_core.types import MarbleError, Prompt, RewardAsset, RewardCard

HPSV2 = RewardAsset(
    "hf://xswu/HPSv2/HPS_v2.1_compressed.pt",
    licence="Apache-2.0",
    size="2.0 GB",
    weights=986_109_441,
    activations=257 * 12 * 1280,
)


class HPSv2:
    """Cosine in [-1, 1], usually 0.15-0.40; applies to every prompt.

    ``checkpoint`` is the published file, or a directory that transformers saved. v2.0 and v2.1 have the same tensors and other
    scores: nothing but the file's name tells them apart. ``processor`` lends its tokenizer, which all CLIPs share, and its
    image size; the whole image is fitted in, on black.
    """

    name = "hpsv2"
    value_range = (-1.0, 1.0)
    card = RewardCard(
        assets=lambda options: named(options, "checkpoint", HPSV2) + named(options, "processor", CLIP_L, part="processor"),
        says="Human preference by HPSv2.1, a CLIP ViT-H/14: usually .15 to .40.",
    )

    def __init__(
        self,
        checkpoint: str = HPSV2.uri,
        processor: str = CLIP_L.uri,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        from marble_core.rewards.clip import load_clip

        self.clip = load_clip(checkpoint, processor, device, dtype)
        self.modules = (self.clip.model,)
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        texts = [clean(prompt.text) for prompt in prompts]
        return self.clip.cosines(images_NHWC, texts, pad=True, batch_size=self.batch_size)

    def self_check(self) -> None:
        check_colors(self.name, self.score)


def clean(text: str) -> str:
    """The prompt as open_clip's tokenizer reads it: mended by ftfy, HTML unescaped twice, blanks collapsed.

    Of 26 450 real prompts 1 % would be read differently without. Lower case is the tokenizer's own doing.
    """
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise MarbleError("The reward 'hpsv2' needs ftfy: pip install 'marble-core[rewards]'.") from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
