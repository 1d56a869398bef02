"""The aesthetic predictor: five linear layers on a CLIP image feature. Prompt-free. See shared/rewards.md, section 2d."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from marble_core.assets import resolve
from marble_core.rewards.clip import known_picture, load_clip
from marble_core.types import MarbleError, Prompt

HIDDEN, DROPOUT = (1024, 128, 64, 16), (0.2, 0.2, 0.1)


class Head(nn.Module):
    """width-1024-128-64-16-1, keys ``layers.{0,2,4,6,7}``: the released head with dropout between, and no activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inner, outer) in enumerate(pairwise((width, *HIDDEN, 1))):
            layers.append(nn.Linear(inner, outer))
            if i < len(DROPOUT):
                layers.append(nn.Dropout(DROPOUT[i]))
        self.layers = nn.Sequential(*layers)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Values (N,)."""
        return self.layers(features_ND).squeeze(-1)


class Aesthetic:
    """The head's raw output, usually 4-8; applies to every prompt and does not look at it.

    ``head`` is a safetensors file with the released keys, or a directory that holds one as ``model.safetensors``.
    """

    name = "aesthetic"
    value_range = (0.0, 11.0)

    def __init__(self, head: str, checkpoint: str = "openai/clip-vit-large-patch14", device: str | None = None) -> None:
        self.clip = load_clip(checkpoint, device=device)
        self.head = load_head(head, self.clip.width)

    def applies(self, prompt: Prompt) -> bool:
        return True

    @torch.no_grad()
    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.head(self.clip.image_features(images_NHWC)).double().numpy()

    def self_check(self) -> None:
        picture = known_picture("red")
        value = self.score(picture[None], [Prompt("a red square", "general")])[0]
        low, high = self.value_range
        if not low < value < high:
            raise MarbleError(
                f"The reward {self.name!r} gives a plain picture {value:.3g}, outside {low:g} to {high:g}: check its head."
            )


def load_head(uri: str, width: int) -> Head:
    """The five layers in fp32. Raises MarbleError where the file is missing or does not fit CLIP's feature width."""
    path = Path(resolve(uri))
    file = path / "model.safetensors" if path.is_dir() else path
    head = Head(width)
    try:
        head.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except (OSError, SafetensorError) as error:
        raise MarbleError(f"The aesthetic head {file} cannot be read: {error}.") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise MarbleError(f"The aesthetic head {file} does not fit a CLIP of {width} features: {reason}") from error
    return head.eval().requires_grad_(False)
