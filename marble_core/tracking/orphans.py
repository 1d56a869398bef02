"""Runs in MLflow whose stage has no process any more: Kubeflow leaves a pod that is cancelled no time to say so, and they stay RUNNING."""

from __future__ import annotations

import os
from collections.abc import Collection

from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.kubeflow_page import RUN_TAG
from marble_core.tracking.run_tree import PARENT_TAG


def end_orphans(ended: Collection[str]) -> list[str]:
    """Set KILLED what MLflow calls RUNNING of these runs, which Kubeflow says have ended; ``ended`` are their ids there.

    Returns the names of the runs in MLflow; none where MLFLOW_TRACKING_URI names no server. Raises MarbleError where MLflow does not
    answer.
    """
    if not ended or not os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    with mlflow_client() as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        running = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
        orphans = [run for run in running if run.data.tags.get(RUN_TAG) in ended]
        roots = {run.info.run_id for run in orphans}
        for run in (*(each for each in running if each.data.tags.get(PARENT_TAG) in roots), *orphans):
            client.set_terminated(run.info.run_id, "KILLED")
    return [str(run.info.run_name) for run in orphans]
