"""What may change while a run goes on. Imports no torch, so that prepare can answer before a GPU is asked for."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from marble_core.config.schema import RunConfig
from marble_core.types import MarbleError

# How far and how it is saved and judged, and what changes no more than rounding; everything else makes another run of it.
FREE = (
    "train.*",
    "watch.*",
    "storage.*",
    "registry.*",
    "evaluation.*",
    "data.evaluation*",
    "model.gradient_checkpointing",
    "model.offload",
    "model.compile",
    "rollout.batch_size",
    "loss.micro_batch",
    "hardware.*",
    "rewards.*.timeout",
    "rewards.*.max_missing",
)


def require_same_run(before: RunConfig, now: RunConfig, where: str | Path) -> None:
    """Raises MarbleError where a setting differs that may not change between ``before``, which ``where`` holds, and ``now``."""
    old, new = before.flat(), now.flat()
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not any(fnmatch(key, free) for free in FREE):
            raise MarbleError(
                f"The run was begun with {key} = {old.get(key, 'nothing')}, not {new.get(key, 'nothing')} ({where}). Set it back, "
                f"or start with another run id and train.start_from. Only {', '.join(FREE)} may change within a run."
            )
