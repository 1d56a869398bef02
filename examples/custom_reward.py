"""A reward of your own: how warm the colours of an image are. On PYTHONPATH its import path is ``custom_reward:Warmth``."""

import numpy as np


class Warmth:
    value_range = (-1.0, 1.0)

    def applies(self, prompt):  # to every prompt; prompt.source and prompt.metadata tell them apart
        return True

    def score(self, images_NHWC, prompts):  # uint8 RGB images, each with its own prompt; NaN where one has no value
        return (images_NHWC[..., 0].mean((1, 2)) - images_NHWC[..., 2].mean((1, 2))) / 255

    def self_check(self):  # on an image with a known answer, before any GPU hour is spent
        assert self.score(np.full((1, 8, 8, 3), (255, 0, 0), "uint8"), [None]) == 1
