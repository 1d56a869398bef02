"""What MLflow knows of a run in Kubeflow once it has ended, and what it has cost: for lists of runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.gpu_hours import ESTIMATED, SPENT
from marble_core.tracking.kubeflow_page import RUN_TAG
from marble_core.tracking.past_runs import MEAN_GAIN

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RunFacts:
    """The gate's decision, the mean gain over the base in its standard deviations, the registered version, and GPU hours. Empty or
    None: there is none (yet)."""

    decision: str = ""
    gain: float | None = None
    version: str = ""
    gpu_hours_estimated: float | None = None
    gpu_hours_spent: float | None = None

    @property
    def gpu_hours(self) -> str:
        """ "3.2 of 12": spent, of those estimated; empty for a run without GPUs."""
        if self.gpu_hours_estimated is None and self.gpu_hours_spent is None:
            return ""
        return f"{self.gpu_hours_spent or 0:.3g} of {'?' if self.gpu_hours_estimated is None else f'{self.gpu_hours_estimated:.3g}'}"


def run_facts(kubeflow_runs: Iterable[str]) -> dict[str, RunFacts]:
    """By the runs' ids in Kubeflow, of those that MLflow knows; none where MLFLOW_TRACKING_URI names no server.

    Raises MarbleError where MLflow does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return {}
    with mlflow_client() as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = {run: _facts(client, experiments, run) for run in kubeflow_runs}
    return {run: facts for run, facts in found.items() if facts}


def _facts(client: MlflowClient, experiments: list[str], kubeflow_run: str) -> RunFacts | None:
    runs = client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{kubeflow_run}'", max_results=1, order_by=["start_time DESC"])
    if not runs:
        return None
    data, decision = runs[0].data, runs[0].data.tags.get("marble.decision", "")
    versions = client.search_model_versions(f"run_id = '{runs[0].info.run_id}'") if decision else []
    version = str(max((int(each.version) for each in versions), default=""))
    of = data.metrics.get
    return RunFacts(decision, of(MEAN_GAIN), version, of(ESTIMATED), of(SPENT))
