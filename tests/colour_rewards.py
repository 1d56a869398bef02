"""Rewards that a tiny run learns in a few steps, for tests of what is made of a learned one."""

import numpy as np

from marble_core.types import Prompt


class Warmth:
    """Red minus blue."""

    value_range = (-1.0, 1.0)
    sign = 1

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: list[Prompt]) -> np.ndarray:
        return self.sign * (images_NHWC[..., 0].mean((1, 2)) - images_NHWC[..., 2].mean((1, 2))) / 255

    def self_check(self) -> None:
        pass


class Broken(Warmth):
    """With red and blue swapped, as published code has had them."""

    sign = -1
