"""The five linear layers that the aesthetic predictor and ImageReward end in. See docs/rewards.md, sections 2d and 6."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

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
