"""How far a training is, for programs: a JSON file beside the run's checkpoints and, in a TrainJob, the job's status in Kubernetes.

Kubeflow Trainer (2.2 and later, feature gate TrainJobStatus) gives the job's pods the address; its SDK sends. Neither the file nor a
server that does not answer holds up a step, or ends the training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from marble_core.runtime.housekeeping import housekeeping
from marble_core.runtime.pace import RECENT, seconds_left
from marble_core.types import MarbleError, StepReport

SERVER = "KUBEFLOW_TRAINER_SERVER_URL"  # of Kubeflow Trainer: where a pod of the job tells its status
PAUSE = 6.0  # seconds; the SDK sends nothing within five of its last
HONEST = ("held_out/worst", "cosine/last_worst")  # cosines with gradients that the update was not made of


class ProgressReport:
    """Of a training of ``steps`` steps; ``file`` is written anew after each step, whole or not at all."""

    def __init__(self, steps: int, file: Path) -> None:
        self._steps, self._file = steps, file
        self._times: list[float] = []
        self._next = 0.0
        self._sending: threading.Thread | None = None

    def step(self, done: StepReport) -> None:
        self._times = [*self._times[-RECENT:], time.time()]
        left = seconds_left(self._times, done.step, self._steps, self._times[-1])
        known = {name: value for name, value in done.metrics.items() if isfinite(value)}  # JSON has no NaN
        progress = {
            "time": round(self._times[-1], 3),
            "step": done.step,
            "steps": self._steps,
            "percent": 100 * done.step // self._steps,
            "seconds_left": None if left is None else round(left),
            "rewards": _rewards(known),
            "worst_cosine": next((known[name] for name in HONEST if name in known), None),
        }
        housekeeping("the progress file", lambda: self._write(progress))
        self._send(progress)

    def _write(self, progress: Mapping[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".tmp")
        beside.write_text(json.dumps(progress) + "\n", encoding="utf-8")
        beside.replace(self._file)

    def _send(self, progress: Mapping[str, Any]) -> None:
        """In the background, and not while the one before is on its way."""
        if not os.environ.get(SERVER) or time.monotonic() < self._next or (self._sending and self._sending.is_alive()):
            return
        self._next = time.monotonic() + PAUSE
        what = "the status of the TrainJob"
        self._sending = threading.Thread(
            target=housekeeping, args=(what, lambda: _to_trainer(progress)), name=what, daemon=True
        )
        self._sending.start()


def _rewards(metrics: Mapping[str, float]) -> dict[str, float]:
    """The mean of each reward in this step."""
    found = {name.removeprefix("reward/"): value for name, value in metrics.items() if name.startswith("reward/")}
    return {name.removesuffix("/mean"): value for name, value in found.items() if name.endswith("/mean")}


def _to_trainer(progress: Mapping[str, Any]) -> None:
    from kubeflow.trainer import update_trainjob_status

    logging.getLogger("kubeflow").setLevel(logging.ERROR)  # housekeeping says it, and once
    metrics = {f"reward/{name}": value for name, value in progress["rewards"].items()}
    if progress["worst_cosine"] is not None:
        metrics["worst_cosine"] = progress["worst_cosine"]
    if not update_trainjob_status(progress["percent"], progress["seconds_left"], metrics):
        raise MarbleError(f"Kubeflow Trainer at {SERVER} did not take it.")
