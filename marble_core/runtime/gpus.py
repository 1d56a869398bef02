"""GPUs that a configuration asks for, and those that are there."""

from __future__ import annotations

from marble_core.runtime import progress


def say_missing_gpus(stage: str, wanted: int) -> None:
    """A note of the stage where torch sees fewer GPUs on this machine than were asked for."""
    import torch

    if said := missing_gpus(stage, wanted, torch.cuda.device_count(), torch.__version__):
        progress.emit(stage, note=said)


def missing_gpus(stage: str, wanted: int, seen: int, version: str) -> str:
    """What is wrong, in words; empty where nothing is. ``version`` is torch's."""
    if seen >= wanted:
        return ""
    place = "the CPU, which may take a hundred times as long" if not seen else f"{seen} of them"
    asked = "1 GPU was" if wanted == 1 else f"{wanted} GPUs were"
    does, field = ("trains", "gpus") if stage == "train" else ("evaluates", "evaluation_gpus")
    return (
        f"Warning: {asked} asked for and torch {version} sees {seen}: it {does} on {place}. Look for a build of torch "
        f"for CPUs, a driver that does not answer (nvidia-smi), or a pod without GPUs (the parameter {field})."
    )
