"""What is benched: SD3.5-Medium's real shape, a cut of it that two cores can run, and the demo model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from marble_core.bench.costs import Schedule
from marble_core.config.loading import load_config
from marble_core.storage.uri import WEIGHTS


@dataclass(frozen=True)
class Shape:
    """A transformer's configuration as diffusers names it, its inputs and its schedule. Weights are always random.

    ``side`` is the latents' width, ``images`` the size of a micro-batch.
    """

    name: str
    transformer: Mapping[str, Any]
    side: int
    text_tokens: int
    images: int
    schedule: Schedule = field(default_factory=Schedule)
    rank: int = 32
    height: int = 0  # of the latents; 0: as wide


SD35_MEDIUM = Shape(
    name="SD3.5-Medium, 24 layers, 512 px, 333 text tokens",
    transformer={
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    side=64,
    text_tokens=333,
    images=1,
)

SD35_MEDIUM_CUT = replace(
    SD35_MEDIUM,
    name="SD3.5-Medium cut to 4 of 24 layers, 256 px, 154 text tokens, fp32",
    transformer={**SD35_MEDIUM.transformer, "num_layers": 4, "dual_attention_layers": (0, 1)},
    side=32,
    text_tokens=154,
    images=2,
)


def demo() -> Shape:
    """The demo model's shape, micro-batch and schedule, from its own configuration."""
    config = load_config("demo")
    stored = json.loads((WEIGHTS / "sd3" / "transformer" / "config.json").read_text(encoding="utf-8"))
    return Shape(
        name="the demo model, 6 layers, 64 px, fp32",
        transformer={name: value for name, value in stored.items() if not name.startswith("_")},
        side=stored["sample_size"],
        text_tokens=17,
        images=config.loss.micro_batch,
        schedule=Schedule(config.loss.kl_fraction, sampling=config.rollout.steps, timesteps=config.loss.timesteps),
        rank=config.lora.rank,
    )
