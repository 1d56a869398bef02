"""A detector that finds what a test planted, and GenEval's score of it."""

from types import MappingProxyType

import numpy as np

from marble_core.rewards.geneval.rules import Detection, GenEval


class Planted:
    """A detector that finds what a test planted: image i is filled with i, and ``colour`` knows each planted detection."""

    scenes = ()
    colour = MappingProxyType({})
    classes = ("cup", "dog", "cat", "blob")
    color_names = ("red", "blue", "green")

    def detect(self, image_HWC):
        return self.scenes[image_HWC[0, 0, 0]]

    def colors(self, image_HWC, detections):
        return [self.colour[d.label, d.score] for d in detections]

    def self_check(self):
        pass


PLANTED = f"{__name__}:Planted"


def scored(detections, prompt, **options):
    """(partial, strict, official) of one planted image."""
    Planted.scenes = [detections]
    return GenEval(PLANTED, **options).score(np.zeros((1, 4, 4, 3), np.uint8), [prompt])[0].tolist()


def cups(*scores):
    return [Detection("cup", score, (20.0 * i, 0.0, 20.0 * i + 10, 10.0)) for i, score in enumerate(scores)]
