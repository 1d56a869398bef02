"""A run's two pages know each other: MLflow's has Kubeflow's name, id and address, and what the stages write has both addresses."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from builders import REWARDS, TINY
from marble_core import stages
from marble_core.runtime.environment import KFP_RUN, KUBEFLOW_PAGE, MLFLOW_PAGE
from marble_core.tracking import provenance
from marble_core.tracking.kubeflow_page import RUN_TAG, described, kubeflow_tags
from marble_core.tracking.orphans import end_orphans
from marble_core.tracking.run_tree import PARENT_TAG, RUN_ID_TAG
from marble_core.tracking.tracker import Tracker

PAGE = "https://kubeflow.example/_/pipeline/?ns=team#/runs/details/kfp-1"
NAME = "Run of Märble (2e0d4)"


@pytest.fixture(autouse=True)
def in_kubeflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KFP_RUN, "kfp-1")
    monkeypatch.setenv(KUBEFLOW_PAGE, "https://kubeflow.example/_/pipeline/?ns=team")


def test_the_pages_of_both_are_linked_where_the_settings_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.pages("http://mlflow.marble.svc:5000", "3", "abc", "marble")
    assert found["Run in Kubeflow"] == PAGE and found["Run in MLflow"].startswith("http://mlflow.marble.svc:5000/#/")
    monkeypatch.setenv(MLFLOW_PAGE, "https://mlflow.example/")
    assert provenance.pages("http://x", "3", "abc", "m")["Run in MLflow"] == "https://mlflow.example/#/experiments/3/runs/abc"
    assert described("Promoted.", "| a |") == f"Promoted.\n\n[Run in Kubeflow]({PAGE})\n\n| a |"
    monkeypatch.delenv(KUBEFLOW_PAGE)
    assert "Run in Kubeflow" not in provenance.pages("http://x", "3", "abc", "m") and described("", "| a |") == "| a |"
    assert kubeflow_tags() == {RUN_TAG: "kfp-1"}


def runs_of(kubeflow: str) -> list:
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{kubeflow}'"))


def test_prepare_names_the_run_as_kubeflow_does_and_its_second_attempt_goes_on_in_it(
    services: dict[str, str], tmp_path: Path
) -> None:
    for attempt in ("first", "second"):  # each draws a run id of its own
        out = tmp_path / attempt
        wanted = stages.prepare("demo", [*TINY, REWARDS], "", out / "prepared", out / "page.html", name=NAME)
    (run,) = runs_of("kfp-1")
    assert run.info.run_name == NAME and run.data.tags["marble.kubeflow_page"] == PAGE
    assert run.data.tags[RUN_ID_TAG] == wanted.run


def test_what_runs_in_mlflow_though_kubeflow_has_ended_it_is_killed_and_nothing_else(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kubeflow in ("kfp-2", "kfp-3"):
        monkeypatch.setenv(KFP_RUN, kubeflow)
        Tracker.start("marble", f"run of {kubeflow}", f"id-{kubeflow}", "prepare", tags=kubeflow_tags()).end("RUNNING")
        Tracker.start("marble", f"run of {kubeflow}", f"id-{kubeflow}", "train")  # and its pod is gone
    assert end_orphans({"kfp-2", "kfp-9"}) == ["run of kfp-2"] and end_orphans({"kfp-2"}) == []
    (gone,), (alive,) = runs_of("kfp-2"), runs_of("kfp-3")
    assert (gone.info.status, alive.info.status) == ("KILLED", "RUNNING")
    client = MlflowClient()
    stages_of = {
        parent.info.run_id: {
            each.info.run_name: each.info.status
            for each in client.search_runs([parent.info.experiment_id], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
        }
        for parent in (gone, alive)
    }
    assert stages_of[gone.info.run_id] == {"prepare": "FINISHED", "train": "KILLED"}
    assert stages_of[alive.info.run_id] == {"prepare": "FINISHED", "train": "RUNNING"}
