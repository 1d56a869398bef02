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
from marble_core.types import MarbleError


@pytest.fixture
def name(services: dict[str, str]) -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])  # another test may have named another server to MLflow


def start(name: str, **params: str) -> Tracker:
    return Tracker.start("tests", name, name, params, {"stage": "train"})


def history(*metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Of steps 1, 2, ..., as the learner keeps it."""
    return [{"step": step, "time": time.time(), "metrics": m, "notes": []} for step, m in enumerate(metrics, 1)]


def points(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client().get_metric_history(tracker.mlflow_run_id, key)]


def test_every_step_is_found_with_all_its_metrics(name: str) -> None:
    tracker = start(name, seed="0")
    tracker.log_history(history(*({"reward/ocr/mean": s / 10, "alpha/ocr": math.inf, "odd*name": 1.0} for s in range(1, 6))))
    tracker.end()
    run = client().get_run(tracker.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == name
    assert run.data.tags[RUN_ID_TAG] == name and run.data.tags["stage"] == "train" and run.data.params == {"seed": "0"}
    assert points(tracker, "reward/ocr/mean") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)]
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
    """An MLflow client of whose requests every other one fails, before or after the server has taken it."""

    def __init__(self, client: MlflowClient) -> None:
        self.client, self.calls = client, 0

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.client, attribute)

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self.calls += 1
        if self.calls % 4 != 1:
            self.client.log_batch(run_id, metrics)
        if self.calls % 2 == 1:
            raise ConnectionError("gone")


def test_metrics_whose_request_failed_are_all_there_once_and_in_order(name: str) -> None:
    tracker = start(name)
    tracker._client = unreliable = Unreliable(tracker._client)  # type: ignore[assignment]
    lines = history(*({"loss": float(step), "time/sample": 0.5} for step in range(1, 7)))
    for done in range(1, 7):
        tracker.log_history(lines[:done])
        assert tracker.flush(30) == 0
    assert unreliable.calls > 6 and tracker.failures > 3
    assert points(tracker, "loss") == [(step, float(step)) for step in range(1, 7)]
    assert points(tracker, "skipped") == [(step, 0.0) for step in range(1, 7)]
    tracker.end()


def test_steps_that_are_made_again_after_a_kill_are_not_doubled_and_unsent_ones_are_caught_up(name: str) -> None:
    killed = start(name)
    killed.log_history(history({"loss": 1.0, "time/sample": 0.1}, {"loss": 2.0, "time/sample": 0.1}))
    assert killed.flush(20) == 0
    again = start(name)  # from a checkpoint after step 1, which knows nothing of step 2
    again.log_history(
        history({"loss": 1.0, "time/sample": 0.1}, {"loss": 2.0, "time/sample": 0.7}, {"skipped": 1.0}, {"loss": 4.0})
    )
    again.end("RUNNING")
    assert points(again, "loss") == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert points(again, "time/sample") == [(1, 0.1), (2, 0.1)]
    assert points(again, "skipped") == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 0.0)]


def test_a_server_that_is_gone_neither_stops_nor_blocks_a_training_and_gets_all_when_it_is_back(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracker = start(name)
    there, lines = tracker._client, history(*({"loss": float(step)} for step in range(1, 21)))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker._client = MlflowClient("http://127.0.0.1:9")
    begin = time.monotonic()
    for done in range(1, 21):
        tracker.log_history(lines[:done])
    assert time.monotonic() - begin < 1.0
    tracker.log_artifact(tmp_path)
    assert tracker.flush(0.1) == 20 and tracker.failures > 0
    tracker._client = there
    tracker.end("RUNNING")
    assert [step for step, _ in points(tracker, "loss")] == list(range(1, 21))


def test_an_mlflow_that_does_not_answer_at_the_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MarbleError, match="MLFLOW_TRACKING_URI is not set"), monkeypatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        start("nowhere")
    with pytest.raises(MarbleError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .*MLFLOW_TRACKING_URI") as error:
        start("unreachable")
    assert "\n" not in str(error.value)
