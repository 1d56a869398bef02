"""How much is drawn and trained when the demo's model is made anew. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything but the code that decides the weights. As it is, two cores take some 40 minutes."""

    seed: int = 1
    pictures: int = 24_000
    vae_steps: int = 1100
    text_to_image_steps: int = 1100
    decoder_steps: int = 300
