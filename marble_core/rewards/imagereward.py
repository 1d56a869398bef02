"""ImageReward (arXiv 2304.05977): BLIP reads prompt and image together. See docs/rewards.md, section 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from marble_core.rewards.checkpoints import named
from marble_core.rewards.self_check import check_colors
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import resolve
from marble_core.types import MarbleError, Prompt, RewardAsset, RewardCard

if TYPE_CHECKING:
    import torch

IMAGE_REWARD = RewardAsset(
    "hf://THUDM/ImageReward/ImageReward.pt",
    "file",
    "Apache-2.0",
    "1.8 GB",
    weights=446_000_000,
    activations=197 * 12 * 1024,
    images=32,
)
BERT = RewardAsset("google-bert/bert-base-uncased", "processor", "Apache-2.0", "1 MB", "tokenizer only")

MAX_TEXT_TOKENS = 35  # half of a typical prompt is not seen
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output, as released
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageReward:
    """Standardised preference, usually -2.3 to 2; applies to every prompt, of which it reads 35 tokens.

    ``checkpoint`` is the published ImageReward.pt, ``tokenizer`` the directory or hub id of bert-base-uncased's.
    """

    name = "imagereward"
    value_range = (-10.0, 10.0)
    card = RewardCard(
        assets=lambda options: named(options, "checkpoint", IMAGE_REWARD) + named(options, "tokenizer", BERT),
        says="Human preference by ImageReward, a BLIP that reads prompt and image together: usually -2.3 to 2.",
    )

    def __init__(
        self,
        checkpoint: str = IMAGE_REWARD.uri,
        tokenizer: str = BERT.uri,
        device: str | None = None,
        dtype: str = "fp32",
        batch_size: int = 32,
    ) -> None:
        from marble_core.rewards.weights.originals import load_image_reward
        from marble_core.rewards.weights.pretrained import default_device, load_tokenizer, place

        what, path = f"The ImageReward checkpoint {checkpoint}", resolve(checkpoint, Part.FILE)
        if path.is_dir():
            raise MarbleError(f"{what} is a directory: give the file ImageReward.pt.")
        self.model = place(load_image_reward(path), device or default_device(), dtype, what)
        self.modules = (self.model,)
        self.image_size = self.model["vision"].config.image_size
        vocabulary = self.model["text"].config.vocab_size
        self.tokenizer = load_tokenizer(resolve(tokenizer, Part.PROCESSOR), vocabulary, "ImageReward's tokenizer")
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        import torch

        texts = [prompt.text for prompt in prompts]
        parts = [slice(i, i + self.batch_size) for i in range(0, len(texts), self.batch_size)]
        with torch.no_grad():
            values = torch.cat([self._values(images_NHWC[part], texts[part]) for part in parts])
        return (values.double().numpy() - MEAN) / STD

    def self_check(self) -> None:
        check_colors(self.name, self.score)

    def _values(self, images_NHWC: np.ndarray, texts: Sequence[str]) -> torch.Tensor:
        """The head's output (B,) for images with their own texts, on the CPU."""
        import torch

        from marble_core.rewards.clip import normalise, resize_and_crop

        vision, text = self.model["vision"], self.model["text"]
        pixels = resize_and_crop(images_NHWC, self.image_size, (self.image_size, self.image_size), "bicubic").float() / 255
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=MAX_TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(vision.device)
        with torch.autocast(vision.device.type, enabled=False):
            patches = vision(normalise(pixels, PIXEL_MEAN, PIXEL_STD).to(vision.device, vision.dtype)).last_hidden_state
            states = text(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=patches,
                encoder_attention_mask=patches.new_ones(patches.shape[:2], dtype=torch.long),
            ).last_hidden_state
            return self.model["head"](states[:, 0]).float().cpu()
