"""The aesthetic predictor: five linear layers on a CLIP image feature. Prompt-free. See docs/rewards.md, section 2d."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from marble_core.rewards.clip import BATCH_SIZE, load_clip
from marble_core.rewards.self_check import check_colors, known_picture
from marble_core.rewards.weights.originals import load_head
from marble_core.storage.artifacts import Part
from marble_core.storage.catalogue import AESTHETIC_HEAD, CLIP_L
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError, Prompt


class Aesthetic:
    """The head's raw output, usually 4-8; applies to every prompt and does not look at it.

    ``head`` is the published .pth, a safetensors file with the same keys, or a directory that holds one as
    ``model.safetensors``. Of the three heads published together only ``sac+logos+ava1-l14-linearMSE`` is the paper's.
    """

    name = "aesthetic"
    value_range = (0.0, 11.0)

    def __init__(
        self,
        head: str = AESTHETIC_HEAD,
        checkpoint: str = CLIP_L,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.clip = load_clip(checkpoint, device=device, dtype=dtype)
        self.modules = (self.clip.model,)
        path = resolve(head, Part.FILE)
        self.head = load_head(path / "model.safetensors" if path.is_dir() else path, self.clip.width)
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    @torch.no_grad()
    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.head(self.clip.image_features(images_NHWC, batch_size=self.batch_size)).double().numpy()

    def self_check(self) -> None:
        """The CLIP knows colours, and the head's value of a plain picture is one that it can have."""
        check_colors(self.name, lambda images, prompts: self.clip.cosines(images, [prompt.text for prompt in prompts]))
        value = self.score(known_picture("red")[None], [Prompt("a red square", "general")])[0]
        low, high = self.value_range
        if not low < value < high:
            raise MarbleError(
                f"The reward {self.name!r} gives a plain picture {value:.3g}, outside {low:g} to {high:g}: check its head."
            )
