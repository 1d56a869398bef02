"""How far a run in Kubeflow is, as MLflow knows it: Kubeflow itself knows neither the step of a training nor a stage's attempts in its pod."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marble_core.runtime.pace import seconds_left
from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.kubeflow_page import RUN_TAG
from marble_core.tracking.run_tree import PARENT_TAG, STAGE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunProgress:
    """Of one stage of a run. ``step`` of ``steps`` is the training's, with the seconds left at its pace while it goes on; None where
    the stage is another, or there is no step yet. ``attempt`` counts from 1; ``because`` says why the one before ended."""

    stage: str
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    attempt: int = 1
    because: str = ""


def run_progress(kubeflow_run: str, stage: str = "") -> RunProgress | None:
    """Of the run of that id in Kubeflow; of its newest stage where none is named.

    None where MLflow does not know it, or MLFLOW_TRACKING_URI names no server. Raises MarbleError where MLflow does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    with mlflow_client() as client:
        return _progress(client, kubeflow_run, stage)


def refusal_of(kubeflow_run: str) -> str:
    """Why the gate refused the model of the run of that id in Kubeflow: worse, no gain, ...; empty where it did not, or nobody knows.

    Raises MarbleError where MLflow does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    with mlflow_client() as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(
            experiments, f"tags.`{RUN_TAG}` = '{kubeflow_run}'", max_results=1, order_by=["start_time DESC"]
        )
    said = runs[0].data.tags.get("marble.decision", "") if runs else ""
    return said.removeprefix("refused: ") if said.startswith("refused: ") else ""


def _progress(client: MlflowClient, kubeflow_run: str, stage: str) -> RunProgress | None:
    experiments, newest = [each.experiment_id for each in client.search_experiments()], ["start_time DESC"]
    if not (runs := client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{kubeflow_run}'", order_by=newest, max_results=1)):
        return None
    run = runs[0]
    below = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'", order_by=newest)
    stages = [each for each in below if each.data.tags.get(STAGE_TAG, "") == (stage or each.data.tags.get(STAGE_TAG))]
    if not stages:
        return None
    own = next((each for each in stages if each.info.status == "RUNNING"), stages[0])
    number, _, because = own.data.tags.get("marble.attempt", "1").partition(": ")
    name = own.data.tags[STAGE_TAG]
    step, steps, left = _training(client, run) if name == "train" else (None, None, None)
    return RunProgress(name, step, steps, left if own.info.status == "RUNNING" else None, int(number), because)


def _training(client: MlflowClient, run: Run) -> tuple[int | None, int | None, float | None]:
    """Its step, of how many, and the seconds left. A step is known by its metric ``skipped``, which every step has."""
    said = run.data.tags.get("changed.train.steps", run.data.params.get("train.steps"))
    steps = int(said) if said else None
    history = sorted(client.get_metric_history(run.info.run_id, "skipped"), key=lambda each: (each.timestamp, each.step))
    if not history:
        return None, steps, None
    step, times = history[-1].step, [each.timestamp / 1000 for each in history]
    return step, steps, None if steps is None else seconds_left(times, step, steps, time.time())
