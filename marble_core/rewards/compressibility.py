"""JPEG compressibility (DDPO, arXiv 2305.13301): needs no weights and is easily hacked. See docs/rewards.md, section 10."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np

from marble_core.types import MarbleError, Prompt, RewardCard

QUALITY = 95


class Compressibility:
    """Minus the size of the image's JPEG in kB (1000 bytes); applies to every prompt and does not look at it.

    A policy raises it by emptying its images. It is for studies of conflict between rewards, not for use.
    """

    name = "compressibility"
    value_range = (-float("inf"), 0.0)
    card = RewardCard(says="Minus the size of the image as JPEG, in kB; needs no weights and is easily hacked.")

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return np.array([-_bytes(image) / 1000 for image in images_NHWC])

    def self_check(self) -> None:
        flat = np.full((64, 64, 3), 128, np.uint8)
        noise = np.random.default_rng(0).integers(0, 256, flat.shape, np.uint8)
        if not _bytes(flat) < _bytes(noise) / 4:
            raise MarbleError(f"The reward {self.name!r} finds noise as small as a flat image: check Pillow's JPEG.")


def _bytes(image_HWC: np.ndarray) -> int:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=QUALITY)
    return file.tell()
