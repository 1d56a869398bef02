"""Published checkpoints that several rewards read, and what a card says of an option that names one. No torch.

Facts: docs/rewards.md, section 1. "unknown" is written where no licence was seen, which is not a permission.
"""

from __future__ import annotations

from dataclasses import replace

from marble_core.types import Options, RewardAsset

CLIP_L = RewardAsset(
    "openai/clip-vit-large-patch14",
    licence="MIT (OpenAI's repository)",
    size="1.7 GB",
    weights=427_616_513,
    activations=257 * 12 * 1024,  # of a ViT: tokens x (12 x width)
)
BATCH_SIZE = 64  # images or texts in a forward pass of a CLIP


def named(options: Options, option: str, default: RewardAsset, *others: RewardAsset, part: str = "") -> list[RewardAsset]:
    """What the option names: one of the published ones with what is known of it, or another; nothing where it is no text."""
    uri = options.get(option, default.uri)
    if not isinstance(uri, str):
        return []
    found = next((asset for asset in (default, *others) if asset.uri == uri), RewardAsset(uri, default.part))
    return [replace(found, part=part or found.part)]
