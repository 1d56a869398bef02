"""What train, evaluate and register do with MLflow, done once with a file of the LoRA's size."""

from __future__ import annotations

import os

from marble_core.config.schema import RunConfig
from marble_core.preflight.answers import Answer, ask
from marble_core.runtime.scratch import scratch_directory
from marble_core.tracking import probe

LARGEST = 512_000_000  # bytes: above the adapters of all presets, so that a limit on bodies shows before the training


def ask_mlflow(config: RunConfig, adapter_bytes: int, run_id: str = "") -> list[Answer]:
    """One line per question; after the first no, no more is asked. ``run_id`` is that of a run that will use the answers."""
    size = min(adapter_bytes, LARGEST)
    answers: list[Answer] = []
    with scratch_directory() as scratch:
        file = scratch / "preflight.bin"
        with file.open("wb") as target:
            for _ in range(0, size, 1 << 20):
                target.write(os.urandom(1 << 20) if size > 1 << 20 else os.urandom(size))
        of_run = [(f"the run {run_id}", lambda: probe.run(config.storage.experiment, run_id))] if run_id else []
        for what, question in (
            (f"the experiment {config.storage.experiment}", lambda: probe.experiment(config.storage.experiment)),
            *of_run,
            (f"log a model of {size / 1e6:.1f} MB", lambda: probe.log_model(config.storage.experiment, file)),
            (f"write to the registered model {config.registry.model}", lambda: probe.registered_model(config.registry.model)),
            ("the champion's files", lambda: probe.champion(config.registry.model)),
        ):
            answers.append(ask(f"MLflow: {what}", question))
            if answers[-1].state == "no":
                break
    return answers
