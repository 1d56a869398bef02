"""What an evaluation's numbers depend on, as its record states it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_core.config.schema import RunConfig
from marble_core.evaluation.statistics import CONFIDENCE
from marble_core.storage.catalogue import base_of
from marble_core.storage.lora_place import lora_file
from marble_core.types import Prompt, Scorer

if TYPE_CHECKING:
    from marble_core.models import DiffusionModel


def settings_of(
    config: RunConfig, prompts: Sequence[Prompt], adapter: Path | None, scorers: Sequence[Scorer], model: DiffusionModel
) -> dict[str, Any]:
    """Ready for JSON. ``guidance_scale`` is what a user's pipeline must be told to sample as base and trained model were."""
    e, m = config.evaluation, config.model
    texts = "\n".join(f"{p.source}\t{p.text}" for p in prompts)
    return {
        "model": m.path,
        "revision": base_of(m).revision,  # what lies in the cache: a branch may have moved since
        "adapter_sha256": {lora_file(adapter).name: file_sha256(adapter)} if adapter else {},
        "solver": e.solver,
        "steps": e.steps,
        "guidance_scale": getattr(model, "guidance_scale", 1.0),
        "height": m.height,
        "width": m.width,
        "precision": m.precision,
        "t5": m.t5,
        "vae_tiling": m.vae_tiling,
        "noise_seed": e.seed,
        "batch_size": e.batch_size,
        "images_per_prompt": 1,
        "prompts": dict(Counter(p.source for p in prompts)),
        "prompts_sha256": _sha256(texts.encode()),
        "resamples": e.resamples,
        "confidence": CONFIDENCE,
        "config_digest": config.digest,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        "rewards": {s.name: s.settings for s in scorers if hasattr(s, "settings")},
    }


def file_sha256(adapter: Path) -> str:
    """Of the file of a LoRA, which ``adapter`` is or holds."""
    return _sha256(lora_file(adapter).read_bytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
