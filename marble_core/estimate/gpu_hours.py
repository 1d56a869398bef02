"""GPU hours of a run before it begins: its hours times the GPUs that it holds, and the limit that they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marble_core.config.pipeline_parameters import gpus_held, is_rehearsal
from marble_core.config.schema import RunConfig
from marble_core.estimate.hours import hours_of
from marble_core.estimate.rehearsal import rehearsal_seconds
from marble_core.estimate.sizes import sizes_of
from marble_core.types import MarbleError


@dataclass(frozen=True)
class GpuHours:
    """Of training on ``train`` GPUs and evaluation on ``evaluation``, without scoring, loading and waiting: ``low`` to ``high``."""

    train: int
    evaluation: int
    low: float
    high: float

    def __str__(self) -> str:
        count = f"{self.train} GPU{'' if self.train == 1 else 's'} to train and {self.evaluation} to evaluate"
        return f"{self.low:.2g} to {self.high:.2g} GPU hours, estimated and not measured: {count}; without scoring and loading"


def gpu_hours_of(config: RunConfig, gpus: tuple[int, int], rehearsal: bool = False) -> GpuHours | None:
    """Of a run that holds these GPUs while it trains and while it evaluates; 0 without GPUs.

    ``config`` is that of the whole run. None where the model's sizes are not known on this machine.
    """
    train, evaluation = gpus
    if not (train or evaluation):
        return GpuHours(0, 0, 0.0, 0.0)
    if (sizes := sizes_of(config.model)) is None:
        return None
    if rehearsal:
        most = max(gpus) * rehearsal_seconds(config, sizes) / 3600
        return GpuHours(train, evaluation, most, most)
    hours = hours_of(config, sizes)
    judged = hours.evaluators * hours.evaluation if evaluation else 0.0  # however many share it
    slack = hours.high / hours.low
    return GpuHours(train, evaluation, train * hours.low + judged, train * hours.high + slack * judged)


def allowed_gpu_hours(config: RunConfig, form: Mapping[str, Any], on_cluster: bool) -> GpuHours | None:
    """The estimate of a run with this ``form`` of the pipeline. Raises MarbleError where it is above the run's limit."""
    hours = gpu_hours_of(config, gpus_held(config, form, on_cluster), is_rehearsal(form))
    check_gpu_hours(config, hours)
    return hours


def check_gpu_hours(config: RunConfig, hours: GpuHours | None) -> None:
    """Raises MarbleError where the upper end of the estimate is above ``hardware.max_gpu_hours``, or there is no estimate."""
    limit = config.hardware.max_gpu_hours
    if limit is None:
        return
    if hours is None:
        raise MarbleError(
            f"The GPU hours of this run cannot be held against hardware.max_gpu_hours = {limit:g}. The sizes of the model "
            f"{config.model.path!r} are not known on this machine: bring its files here with marble fetch, or take the limit away."
        )
    if hours.high > limit:
        raise MarbleError(
            f"The run may take {hours.high:.3g} GPU hours, and hardware.max_gpu_hours (--max-gpu-hours) is {limit:g}: train fewer "
            "steps, or raise the limit."
        )
