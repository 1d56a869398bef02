"""Randomness as a function of (seed, what for, step, index): the same after a resume and on any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *what: object) -> int:
    """A 63-bit seed that depends on all arguments and on nothing else."""
    text = "\x1f".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def noise(seeds: Iterable[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise (N, *shape) in float32 on the CPU, one generator an image."""
    import torch

    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
