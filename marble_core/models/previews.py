"""Images of training as it goes: the same prompts from the same noise every few steps, as one grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marble_core.config.schema import RunConfig
from marble_core.models.policy import Policy
from marble_core.models.sampling import sample
from marble_core.runtime.seeding import derive
from marble_core.types import Prompt, in_order

A_SOURCE = 4  # prompts of each source, a row of the grid
SIDE = 256  # pixels of an image in the grid at most


def fixed_texts(prompts: Sequence[Prompt]) -> list[list[str]]:
    """The first prompts of each source that there is, as many of each."""
    rows = [
        list(dict.fromkeys(p.text for p in prompts if p.source == source))[:A_SOURCE]
        for source in in_order(p.source for p in prompts)
    ]
    width = min(len(row) for row in rows if row)
    return [row[:width] for row in rows if row]


def grid(policy: Policy, prompts: Sequence[Prompt], config: RunConfig) -> np.ndarray:
    """What the adapter ``default`` draws now, as the evaluation would sample it: uint8 HWC, a row a source.

    Noise and solver know nothing of the training, which stays the same to the bit with and without these images. Raises
    MarbleError for one that is not finite.
    """
    rows = fixed_texts(prompts)
    texts = [text for row in rows for text in row]
    e = config.evaluation
    seeds = [derive(e.seed, "samples", i) for i in range(len(texts))]
    with policy.using("default") as model:
        images_NHWC = sample(model, texts, seeds, e.solver, e.steps, e.batch_size, precision=config.model.precision)[1]
    small = [_small(image_HWC) for image_HWC in images_NHWC]
    width = len(rows[0])
    return np.concatenate([np.concatenate(small[i : i + width], axis=1) for i in range(0, len(small), width)])


def _small(image_HWC: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(image_HWC)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)
