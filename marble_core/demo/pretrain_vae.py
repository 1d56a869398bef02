"""The VAE's two phases: the whole on crops and then on images, and at the end the decoder alone, for latents that are fixed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from marble_core.demo.architecture import LATENT_CHANNELS
from marble_core.demo.phase import Phase, Show

VAE_LR, DECODER_LR = 2e-3, 1.5e-3
CROP_SHARE, CROP, CROPS, WHOLES = 0.6, 32, 64, 16  # of the steps; pixels; images a step, either way
NOISE = 0.25  # standard deviation in the latents, so that the decoder bears what a sampler leaves
PULL = 2e-3  # of the latents towards zero
AVERAGE = 0.99


def train_vae(vae: Any, pictures: Tensor, steps: int, seed: int, file: Path, show: Show) -> None:
    """``images`` (N, C, H, W) uint8. The first steps see crops, four times as many."""
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_LR, betas=(0.9, 0.95), weight_decay=1e-3)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        whole = step >= CROP_SHARE * steps
        index = torch.randint(len(pictures), (WHOLES if whole else CROPS,), generator=generator)
        x = as_pixels(pictures[index] if whole else _crop(pictures[index], generator))
        z = vae.encoder(x)[:, :LATENT_CHANNELS]
        y = vae.decoder(z + NOISE * torch.randn(z.shape, generator=generator))
        return _difference(y, x) + PULL * z.square().mean()

    Phase("vae", vae, [optimizer], steps, _cosine, AVERAGE, seed, file).run(loss_of, show)


def train_decoder(vae: Any, pictures: Tensor, latents: Tensor, steps: int, seed: int, file: Path, show: Show) -> None:
    """``latents`` (N, c, h, w) are the images' own, as the encoder gives them. Edges count as well as pixels."""
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), DECODER_LR, betas=(0.9, 0.95), weight_decay=1e-3)

    def loss_of(_: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pictures), (WHOLES,), generator=generator)
        x, z = as_pixels(pictures[index]), latents[index].float()
        strength = NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
        y = vae.decoder(z + strength * torch.randn(z.shape, generator=generator))
        edges = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
        return _difference(y, x) + 0.5 * edges

    Phase("decoder", vae.decoder, [optimizer], steps, _line, AVERAGE, seed, file).run(loss_of, show)


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, show: Show) -> Tensor:
    """The images' latents (N, c, h, w), not yet shifted and scaled, fp16."""
    latents = []
    for part in pictures.split(100):
        latents.append(vae.encoder(as_pixels(part))[:, :LATENT_CHANNELS].half())
        show("latents", sum(map(len, latents)), len(pictures), None)
    return torch.cat(latents)


def as_pixels(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def _difference(y: Tensor, x: Tensor) -> Tensor:
    """L2, and L1 made smooth at zero."""
    square = (y - x).square()
    return (square + 1e-4).sqrt().mean() + square.mean()


def _crop(pictures: Tensor, generator: torch.Generator) -> Tensor:
    corners = torch.randint(pictures.shape[-1] - CROP + 1, (len(pictures), 2), generator=generator).tolist()
    return torch.stack([p[:, i : i + CROP, j : j + CROP] for p, (i, j) in zip(pictures, corners, strict=True)])


def _cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def _line(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 20, max(0.02, 1.2 * (1 - step / steps)))
