"""Diversity: how unlike the other images of its prompt an image is, by CLIP. See docs/rewards.md, section 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.rewards.checkpoints import BATCH_SIZE, CLIP_L, named
from marble_core.rewards.self_check import known_image
from marble_core.types import MarbleError, Prompt, RewardCard


class Diversity:
    """Mean cosine distance in [0, 2] of an image's CLIP features to those of the other images of its group; applies to every prompt.

    r_i = mean over j != i of 1 - <f_i, f_j>. Centred in the group, as advantages are, it gives the policy gradient of the expected
    pairwise distance (each pair counts for both of its images), so it needs no other estimator. As a reward it also pays for broken
    outliers; as a guard (``balance.guards``) it only bounds what the others may take.
    """

    name = "diversity"
    value_range = (0.0, 2.0)
    groupwise = True
    card = RewardCard(
        assets=lambda options: named(options, "checkpoint", CLIP_L),
        says="How unlike the other images of its prompt an image is: the mean cosine distance of CLIP, 0 to 2.",
    )

    def __init__(
        self, checkpoint: str = CLIP_L.uri, device: str | None = None, dtype: str = "fp32", batch_size: int = BATCH_SIZE
    ) -> None:
        from marble_core.rewards.clip import load_clip

        self.clip = load_clip(checkpoint, device=device, dtype=dtype)
        self.modules = (self.clip.model,)
        self.batch_size = batch_size

    def applies(self, prompt: Prompt) -> bool:
        return True

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt], group_N: np.ndarray) -> np.ndarray:
        """Raises MarbleError for an image that is alone in its group."""
        features_ND = self.clip.image_features(images_NHWC, batch_size=self.batch_size).double().numpy()
        values_N = np.zeros(len(group_N))
        for group in dict.fromkeys(group_N.tolist()):
            own = np.flatnonzero(group_N == group)
            if len(own) < 2:
                raise MarbleError(
                    f"The reward 'diversity' compares the images of a prompt, and {prompts[own[0]].text!r} has one alone."
                )
            f_ID = features_ND[own]
            others_I = (f_ID @ f_ID.sum(axis=0) - np.square(f_ID).sum(axis=1)) / (len(own) - 1)
            values_N[own] = np.clip(1 - others_I, 0, 2)  # equal images, but for rounding
        return values_N

    def self_check(self) -> None:
        """Of two red squares and a blue one the blue one is least like the others."""
        images_NHWC = np.stack([known_image(color) for color in ("red", "red", "blue")])
        red, same, blue = self.score(images_NHWC, [Prompt("a square", "general")] * 3, np.zeros(3, dtype=int))
        if not blue > max(red, same):
            raise MarbleError(
                f"The reward 'diversity' finds a blue square no less like two red ones than these ({blue:.3f} against {red:.3f}): "
                "check its checkpoint."
            )
