"""How well a text-to-image model draws the demo's world: words that can be read, shapes as the prompt has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from marble_core.config.schema import ModelConfig
from marble_core.demo.prompts import SHARES, generate
from marble_core.demo.scenes import SIZE
from marble_core.models.sd3 import SD3
from marble_core.rewards.geneval.rules import GenEval
from marble_core.rewards.ocr import Ocr
from marble_core.runtime.seeding import derive, noise
from marble_core.types import Prompt

DETECTOR = "marble_core.demo.shapes:ShapesDetector"
BATCH = 96


@dataclass(frozen=True)
class Scores:
    """Every score of every image, in [0, 1]. OCR's similarity and whether it is 1; GenEval's two rules, and the tags."""

    similarity: np.ndarray
    exact: np.ndarray
    partial: np.ndarray
    strict: np.ndarray
    tags: tuple[str, ...]

    def columns(self) -> dict[str, np.ndarray]:
        """By heading, GenEval's strict score also for each tag alone."""
        of_tag = {tag: self.strict[np.array([one == tag for one in self.tags], dtype=bool)] for tag in SHARES["geneval"]}
        whole = {"ocr": self.similarity, "exact": self.exact, "geneval": self.partial, "strict": self.strict}
        return whole | {tag: found for tag, found in of_tag.items() if len(found)}


def load(model: str) -> SD3:
    """A directory, or a name like demo://sd3. Raises MarbleError where there is no such model."""
    return SD3(ModelConfig(path=model, precision="fp32", height=SIZE, width=SIZE, max_sequence_length=1))


def score(model: SD3, n: int, guidance: float, steps: int, seed: int) -> Scores:
    """Of ``n`` held-out prompts of each source; prompts and noise are the same for every model and guidance scale.

    ``guidance`` 1 is none. ``steps`` are those of the model's own scheduler.
    """
    words, shapes = (generate(source, n, seed, held_out=True) for source in ("ocr", "geneval"))
    written, drawn = (sample(model, prompts, guidance, steps, seed) for prompts in (words, shapes))
    similarity = Ocr(detection=False).score(written, words)[:, 0]
    partial, strict, _ = GenEval(DETECTOR).score(drawn, shapes).T
    return Scores(
        similarity, (similarity == 1).astype(float), partial, strict, tuple(prompt.metadata.get("tag", "") for prompt in shapes)
    )


@torch.no_grad()
def sample(model: SD3, prompts: Sequence[Prompt], guidance: float, steps: int, seed: int) -> np.ndarray:
    """(N, H, W, C) uint8: one image a prompt, from noise that depends on the seed and its place among them."""
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = range(start, min(start + BATCH, len(prompts)))
        latents = model.pipeline(
            [prompts[i].text for i in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            max_sequence_length=1,
            latents=noise([derive(seed, "score", i) for i in part], model.latent_shape),
            output_type="latent",
        ).images
        pictures.append(model.decode(latents))
    return np.concatenate(pictures)
