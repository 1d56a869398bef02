"""The tree of a pipeline's runs on a real MLflow: with Kubeflow's plugin and without, retried, cloned, gone on with, on two servers."""

import os
import uuid
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from marble_core.runtime import mlflow_server
from marble_core.tracking.run_tree import PARENT_TAG, RUN_ID_TAG, STAGE_TAG
from marble_core.tracking.tracker import Tracker

STAGES = ("prepare", "train", "evaluate", "register")


class Plugin:
    """Kubeflow's: a run for each pipeline, and one below it for each task, in an experiment of its own."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.experiment = client.create_experiment(f"KFP-{uuid.uuid4().hex[:6]}")
        self.root = client.create_run(self.experiment, run_name="Run of marble (2e0d4)")

    def task(self, name: str) -> str:
        return self.client.create_run(self.experiment, run_name=name, tags={PARENT_TAG: self.root.info.run_id}).info.run_id


@pytest.fixture
def client(services: dict[str, str]) -> Iterator[MlflowClient]:
    yield MlflowClient()


def stage(name: str, run_id: str, task: str = "") -> Tracker:
    """A stage's process, with the variable that the plugin gives it."""
    with pytest.MonkeyPatch.context() as patch:
        if task:
            patch.setenv("MLFLOW_RUN_ID", task)
        tracker = Tracker.start("marble", run_id, run_id, name, {"train.steps": "3"})
        tracker.end("FINISHED" if name == "register" else "RUNNING")
    return tracker


def tree(client: MlflowClient, root: str) -> dict[str, list[str]]:
    """The names below a run, level by level: {"train": ["a run below it"]}."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    below = client.search_runs(experiments, f"tags.`{PARENT_TAG}` = '{root}'")
    return {str(run.info.run_name): sorted(tree(client, run.info.run_id)) for run in below}


def tagged(client: MlflowClient, run_id: str) -> list[Run]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{RUN_ID_TAG}` = '{run_id}'"))


def test_without_the_plugin_there_is_one_run_with_one_below_it_for_each_stage(client: MlflowClient) -> None:
    run_id = uuid.uuid4().hex[:8]
    for name in ("prepare", "train", *STAGES[1:]):  # train twice: a restart
        stage(name, run_id)
    (run,) = tagged(client, run_id)
    assert tree(client, run.info.run_id) == {name: [] for name in STAGES} and run.info.status == "FINISHED"


def test_with_the_plugin_its_runs_are_ours_also_where_a_pod_is_tried_again(client: MlflowClient) -> None:
    run_id, plugin = uuid.uuid4().hex[:8], Plugin(client)
    tasks = {name: plugin.task(name) for name in STAGES}
    for name in STAGES:
        assert stage(name, run_id, tasks[name]).stage_run_id == tasks[name]
    assert stage("train", run_id, tasks["train"]).stage_run_id == tasks["train"]
    (run,) = tagged(client, run_id)
    assert run.info.run_id == plugin.root.info.run_id and run.data.params["train.steps"] == "3"
    assert run.info.run_name == "Run of marble (2e0d4)" and tree(client, run.info.run_id) == {name: [] for name in STAGES}
    again = plugin.task("train")  # of Kubeflow's own retry
    assert stage("train", run_id, again).stage_run_id == tasks["train"], "its curves go on where they were"


def test_a_pipeline_that_goes_on_with_a_run_hangs_below_it_and_a_clone_is_a_tree_of_its_own(client: MlflowClient) -> None:
    run_id, first, second, clone = uuid.uuid4().hex[:8], Plugin(client), Plugin(client), Plugin(client)
    stage("prepare", run_id, first.task("prepare"))
    stage("train", run_id, first.task("train"))  # terminated here
    for name in STAGES:
        stage(name, run_id, second.task(name))
    (run,) = tagged(client, run_id)
    assert run.info.run_id == first.root.info.run_id
    below: dict[str, list[str]] = {name: [] for name in STAGES}
    assert tree(client, run.info.run_id) == below | {"Run of marble (2e0d4)": ["prepare", "train"]}
    assert client.get_run(second.root.info.run_id).data.tags[PARENT_TAG] == run.info.run_id
    other = uuid.uuid4().hex[:8]
    stage("prepare", other, clone.task("prepare"))
    assert [each.info.run_id for each in tagged(client, other)] == [clone.root.info.run_id]
    assert PARENT_TAG not in client.get_run(clone.root.info.run_id).data.tags


def test_a_run_of_the_plugin_that_is_gone_is_none(client: MlflowClient) -> None:
    run_id = uuid.uuid4().hex[:8]
    stage("train", run_id, uuid.uuid4().hex)
    (run,) = tagged(client, run_id)
    (below,) = client.search_runs(
        [run.info.experiment_id], f"tags.`{STAGE_TAG}` = 'train' and tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    )
    assert below.info.run_name == "train"


def test_our_own_variables_win_and_a_second_server_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*mlflow_server.NAMES, *mlflow_server.PLUGIN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.kubeflow:5000/")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("MARBLE_MLFLOW_TRACKING_URI", "http://mlflow.kubeflow:5000")
    assert mlflow_server.settle() == "" and os.environ["MLFLOW_RUN_ID"] == "abc"
    assert mlflow_server.settle() == "", "a second time, in a child"
    monkeypatch.setenv("MARBLE_MLFLOW_TRACKING_URI", "http://marble:hidden@mlflow.marble:5000")
    said = mlflow_server.settle()
    assert said.count(".") >= 1 and "http://mlflow.kubeflow:5000" in said and "hidden" not in said
    assert "MLFLOW_RUN_ID" not in os.environ and os.environ["MLFLOW_TRACKING_URI"] == "http://marble:hidden@mlflow.marble:5000"
