"""The aesthetic predictor: five linear layers on a CLIP image feature. Prompt-free. See docs/rewards.md, section 2d."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.checkpoints import BATCH_SIZE, CLIP_L, named
from marble_core.rewards.self_check import check_colors, known_image
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError, Prompt, RewardAsset, RewardCard

HEAD = RewardAsset(
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "file",
    "Apache-2.0",
    "3.7 MB",
    weights=923_985,
)


class Aesthetic:
    """The head's raw output, usually 4-8; applies to every prompt and does not look at it.

    ``head`` is the published .pth, a safetensors file with the same keys, or a directory that holds one as
    ``model.safetensors``. Of the three heads published together only ``sac+logos+ava1-l14-linearMSE`` is the paper's.
    """

    name = "aesthetic"
    value_range = (0.0, 11.0)
    card = RewardCard(
        assets=lambda options: named(options, "checkpoint", CLIP_L) + named(options, "head", HEAD),
        says="How beautiful the image is, without its prompt: a small head on CLIP features, usually 4 to 8.",
    )

    def __init__(
        self,
        head: str = HEAD.uri,
        checkpoint: str = CLIP_L.uri,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        from marble_core.rewards.clip import load_clip
        from marble_core.rewards.weights.originals import load_head

        self.clip = load_clip(checkpoint, device=device, dtype=dtype)
        self.modules = (self.clip.model,)
        path = resolve(head, Part.FILE)
        self.head = load_head(path / "model.safetensors" if path.is_dir() else path, self.clip.width)
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.head(self.clip.image_features(images_NHWC, batch_size=self.batch_size)).double().numpy()

    def self_check(self) -> None:
        """The CLIP knows colours, and the head's value of a plain image is one that it can have."""
        check_colors(self.name, lambda images, prompts: self.clip.cosines(images, [prompt.text for prompt in prompts]))
        value = self.score(known_image("red")[None], [Prompt("a red square", "general")])[0]
        low, high = self.value_range
        if not low < value < high:
            raise MarbleError(
                f"The reward {self.name!r} gives a plain image {value:.3g}, outside {low:g} to {high:g}: check its head."
            )
