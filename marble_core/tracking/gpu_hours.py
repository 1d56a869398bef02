"""GPU hours that a run has spent: seconds of a stage times the GPUs that it holds, summed over its stages and their attempts, in MLflow.

A stage is counted from its start, or from the end of its attempt before, so that the pauses between attempts count, in which the pod
holds its GPUs too; what it waits for in a queue does not. A process that is killed takes at most ``EVERY`` seconds with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from marble_core.runtime.environment import GPUS_SINCE, KFP_RUN

if TYPE_CHECKING:
    from marble_core.tracking.tracker import Tracker

ESTIMATED, SPENT = "gpu_hours/estimated", "gpu_hours/spent"  # metrics of the run
EVERY = 60.0  # seconds between two numbers


@contextmanager
def counted_from_here() -> Iterator[None]:
    """A stage's GPU hours are counted from here, where whoever started it has not said from when."""
    known = os.environ.get(GPUS_SINCE)
    os.environ[GPUS_SINCE] = known or str(time.time())
    try:
        yield
    finally:
        os.environ.pop(GPUS_SINCE) if known is None else None


def gpus_of_stage(used: int, nodes: int = 1) -> int:
    """On a cluster those of the stage's pods, which nobody else can use; elsewhere as many as it has ``used``."""
    import torch

    seen = torch.cuda.device_count()
    return seen * nodes if os.environ.get(KFP_RUN) else min(used, seen)


@contextmanager
def gpu_hours_told(tracker: Tracker, gpus: int, every: float = EVERY) -> Iterator[None]:
    """While the block goes on, the run's metric ``gpu_hours/spent`` grows by what ``gpus`` take. Nothing is written without GPUs.

    The metric's step counts its numbers, so that MLflow shows the newest, whatever step of a training it belongs to.
    """
    if not gpus or (last := tracker.last_of(SPENT)) is None:  # MLflow cannot say what there is: better no sum than a wrong one
        yield
        return
    since = float(os.environ.get(GPUS_SINCE) or time.time())
    number, before = last
    over = threading.Event()

    def tell() -> None:
        nonlocal number
        number += 1
        tracker.log_metrics({SPENT: before + gpus * (time.time() - since) / 3600}, number)

    def go_on() -> None:
        tell()
        while not over.wait(every):
            tell()

    thread = threading.Thread(target=go_on, name="GPU hours", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
