"""What MlflowClient finds on a real server after a run, and that a server that is gone stops nothing."""

import math
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from marble_core.loading import load_config
from marble_core.storage import S3
from marble_core.tracking import RUN_ID_TAG, Tracker, run_params
from marble_core.types import MarbleError, StepReport


@pytest.fixture
def name(services: dict[str, str]) -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])  # another test may have named another server to MLflow


def start(name: str, **params: str) -> Tracker:
    return Tracker.start("tests", name, name, params, {"stage": "train"})


def test_every_step_is_found_with_all_its_metrics(name: str) -> None:
    tracker = start(name, seed="0")
    for step in range(1, 6):
        tracker.log_step(StepReport(step, {"reward/ocr/mean": step / 10, "alpha/ocr": math.inf, "odd*name": 1.0}))
    tracker.end()
    run = client().get_run(tracker.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == name
    assert run.data.tags[RUN_ID_TAG] == name and run.data.tags["stage"] == "train" and run.data.params == {"seed": "0"}
    history = client().get_metric_history(tracker.mlflow_run_id, "reward/ocr/mean")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)]
    assert all(math.isnan(m.value) for m in client().get_metric_history(tracker.mlflow_run_id, "alpha/ocr"))
    assert "odd_name" in run.data.metrics
    assert tracker.failures == 0


def test_a_restarted_stage_goes_on_in_the_same_run_and_changed_parameters_are_tags(name: str) -> None:
    first = start(name, seed="0")
    first.end("FAILED")
    again = start(name, seed="1", steps="9")
    again.end("RUNNING")
    assert again.mlflow_run_id == first.mlflow_run_id
    run = client().get_run(again.mlflow_run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "0", "steps": "9"} and run.data.tags["changed.seed"] == "1"


def test_files_and_pictures_are_stored_in_s3_by_the_server(name: str, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "report.html").write_text("<p>")
    tracker = start(name)
    tracker.log_artifact(tmp_path / "pages", "all")
    tracker.log_artifact(tmp_path / "pages" / "report.html")
    tracker.log_image(np.zeros((8, 8, 3), np.uint8), "after", 3)
    tracker.end()
    assert tracker.failures == 0
    assert {a.path for a in client().list_artifacts(tracker.mlflow_run_id)} == {"all", "images", "report.html"}
    assert any(key.endswith(f"{tracker.mlflow_run_id}/artifacts/all/report.html") for key in S3("mlflow").keys("artifacts"))


def test_the_configuration_becomes_flat_parameters() -> None:
    params = run_params(load_config("demo", overrides=["train.steps=7"]))
    assert params["train.steps"] == "7" and params["seed"] == "0"
    assert params["rewards.ocr.options.detection"] == "False"
    assert params["reward_names"] == "clipscore,pickscore,aesthetic,ocr,geneval"


class Unreliable:
    """An MLflow client whose background requests fail."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.client, attribute)

    def log_batch(self, run_id: str, metrics: Any, synchronous: bool = True) -> Any:
        class Lost:
            def wait(self) -> None:
                raise ConnectionError("gone")

        return self.client.log_batch(run_id, metrics) if synchronous else Lost()


def test_metrics_that_were_lost_on_their_way_are_sent_again_at_the_end(name: str) -> None:
    tracker = start(name)
    tracker._client = Unreliable(tracker._client)  # type: ignore[assignment]
    for step in (1, 2):
        tracker.log_step(StepReport(step, {"loss": float(step)}))
    tracker.end()
    assert tracker.failures == 2
    assert [m.value for m in client().get_metric_history(tracker.mlflow_run_id, "loss")] == [1.0, 2.0]


def test_a_server_that_is_gone_neither_stops_nor_blocks_a_training(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = start(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker._client = MlflowClient("http://127.0.0.1:9")
    begin = time.monotonic()
    for step in range(20):
        tracker.log_step(StepReport(step, {"loss": 1.0}))
    assert time.monotonic() - begin < 1.0
    tracker.log_artifact(tmp_path)
    tracker.end()
    assert tracker.failures > 0


def test_an_mlflow_that_does_not_answer_at_the_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MarbleError, match="MLFLOW_TRACKING_URI is not set"), monkeypatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        start("nowhere")
    with pytest.raises(MarbleError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .*MLFLOW_TRACKING_URI") as error:
        start("unreachable")
    assert "\n" not in str(error.value)
