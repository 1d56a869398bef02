"""The transformer and its text encoders, trained together by flow matching in the VAE's latents.

Under bf16 autocast: with AVX-512's bf16 instructions a forward and backward take three quarters of fp32's CPU time (1.45 s of
1.9 s, measured side by side).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from marble_core.demo import architecture
from marble_core.demo.phase import Phase, Show

BATCH = 160
LR = 1.75e-3
EMPTY_SHARE = 0.1  # of the prompts, for classifier-free guidance
WARMUP, DECAY_SHARE = 60, 0.35  # steps; the last part of them
AVERAGE = 0.997
NOT_MUON = ("embed", "norm", "proj_out", "projection")  # Muon is for the matrices between hidden layers


class TextToImage(nn.Module):
    """The transformer with the text encoders before it, as StableDiffusion3Pipeline joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = architecture.text_encoder(width=128, layers=3, heads=4)
        self.text_encoder_2 = architecture.text_encoder(width=64, layers=2, heads=2)
        self.transformer = architecture.transformer()

    def forward(self, x_BCHW: Tensor, t_B: Tensor, ids_BL: Tensor) -> Tensor:
        """The velocity (B, C, H, W) at times t in [0, 1]. The one zero token is T5's (max_sequence_length 1)."""
        found = [encoder(ids_BL, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        tokens = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
        return self.transformer(
            hidden_states=x_BCHW,
            timestep=t_B * 1000,
            encoder_hidden_states=torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1),
            pooled_projections=torch.cat([one.text_embeds for one in found], dim=-1),
            return_dict=False,
        )[0]


def train_text_to_image(
    model: TextToImage, latents: Tensor, texts: list[str], steps: int, seed: int, file: Path, show: Show
) -> None:
    """``latents`` (N, c, h, w) shifted and scaled, of the images that the N ``texts`` describe."""
    tokenizer = architecture.tokenizer()
    tokenized = tokenizer(["", *texts], padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty, ids = tokenized[0], tokenized[1:]

    batch = min(BATCH, len(latents))

    def loss_of(_: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (batch,), generator=generator)
        is_empty = torch.rand(batch, 1, generator=generator) < EMPTY_SHARE
        t = torch.randn(batch, generator=generator).sigmoid()
        x0 = latents[index]
        eps = torch.randn(x0.shape, generator=generator)
        t_B111 = t[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            v = model((1 - t_B111) * x0 + t_B111 * eps, t, torch.where(is_empty, empty, ids[index]))
        return (v.float() - (eps - x0)).square().mean()

    phase = Phase("text-to-image", model, _optimizers(model), steps, _trapezoid, AVERAGE, seed, file)
    phase.run(loss_of, show)


def _optimizers(model: nn.Module) -> list[Optimizer]:
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    matrices = {name for name, value in named if value.ndim == 2 and not any(part in name for part in NOT_MUON)}
    muon = [value for name, value in named if name in matrices]
    rest = [value for name, value in named if name not in matrices]
    return [
        Muon(muon, LR, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        AdamW(rest, LR, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _trapezoid(step: int, steps: int) -> float:
    """Warm-up, constant, linear decay."""
    return min(1.0, (step + 1) / WARMUP, max(0.02, (1 - step / steps) / DECAY_SHARE))
