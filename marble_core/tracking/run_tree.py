"""One tree in MLflow per pipeline's run: the run, and one for each stage below it, whoever made them.

The run is found again by its tag ``marble.run_id``, or by that of Kubeflow's run, where prepare was tried again and gave it another
id; a stage's by its parent and ``marble.stage``. Where Kubeflow's own MLflow plugin
is switched on, it makes a run for the pipeline and one below it for each task, whose id it gives the task as MLFLOW_RUN_ID: these are
ours then. A pipeline that goes on with a run (``--run-id``) hangs its own run below the one that is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from marble_core.tracking.kubeflow_page import RUN_TAG
from marble_core.tracking.metric_glossary import EXPERIMENT
from marble_core.tracking.provenance import stage_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_ID_TAG = "marble.run_id"
STAGE_TAG = "marble.stage"
PARENT_TAG = "mlflow.parentRunId"
GIVEN = "MLFLOW_RUN_ID"


def open_runs(
    client: MlflowClient, experiment: str, run_name: str, run_id: str, stage: str, tags: Mapping[str, str]
) -> tuple[Run, Run]:
    """The pipeline's run and the stage's, both running; made where there are none."""
    task, given = _given(client)
    experiment_id = given.info.experiment_id if given else experiment_of(client, experiment)
    # The plugin has an experiment of its own choice, and another one for another pipeline.
    places = [each.experiment_id for each in client.search_experiments()] if given else [experiment_id]
    run = _find(client, places, {RUN_ID_TAG: run_id})
    if run is None and (of_kubeflow := tags.get(RUN_TAG)):
        run = _find(client, places, {RUN_TAG: of_kubeflow})
    run = run or given
    if given and run and given.info.run_id != run.info.run_id:
        client.set_tag(given.info.run_id, PARENT_TAG, run.info.run_id)
    run = _opened(client, run, experiment_id, run_name, {**tags, RUN_ID_TAG: run_id})
    own = {STAGE_TAG: stage, PARENT_TAG: run.info.run_id}
    found = _find(client, places, own) or task
    return run, _opened(client, found, run.info.experiment_id, stage, {**stage_tags(), **own})


def _given(client: MlflowClient) -> tuple[Run | None, Run | None]:
    """The runs of Kubeflow's plugin: the task's, and the one at the root of its tree. Neither without the plugin."""
    from mlflow.exceptions import MlflowException

    run_id = os.environ.get(GIVEN)
    if not run_id:
        return None, None
    try:
        task = root = client.get_run(run_id)
        while parent := root.data.tags.get(PARENT_TAG):
            root = client.get_run(parent)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None, None  # somebody has deleted it
    return (None if task.info.run_id == root.info.run_id else task), root


def _find(client: MlflowClient, experiments: Sequence[str], tags: Mapping[str, str]) -> Run | None:
    wanted = " and ".join(f"tags.`{key}` = '{value.replace(chr(39), '')}'" for key, value in tags.items())
    runs = client.search_runs(list(experiments), wanted, max_results=1, order_by=["start_time DESC"])
    return runs[0] if runs else None


def _opened(client: MlflowClient, run: Run | None, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """The run, running; made where there is none. Its tags say where its newest part comes from."""
    from mlflow.entities import RunTag

    if run is None:
        return client.create_run(experiment_id, run_name=name, tags=dict(tags))
    client.update_run(run.info.run_id, status="RUNNING")
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run


def experiment_of(client: MlflowClient, name: str) -> str:
    """Of the experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags={"mlflow.note.content": EXPERIMENT}))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    """A run's parameters cannot change in MLflow: new ones are added, and changed ones become tags ``changed.KEY``."""
    from mlflow.entities import Param, RunTag

    known = run.data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    changed = [RunTag(f"changed.{key}", value) for key, value in params.items() if known.get(key, value) != value]
    for first in range(0, len(new), 100):  # MLflow's limit on one request
        client.log_batch(run.info.run_id, params=new[first : first + 100])
    if changed:
        client.log_batch(run.info.run_id, tags=changed)
