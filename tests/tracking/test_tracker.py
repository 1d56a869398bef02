"""What MlflowClient finds on a real server after a run, and that a server that is gone stops nothing."""

import json
import math
import os
import re
import subprocess
import threading
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from marble_core.config.loading import load_config
from marble_core.storage.s3 import S3
from marble_core.tracking.provenance import code_tags, datasets
from marble_core.tracking.run_tree import RUN_ID_TAG
from marble_core.tracking.tracker import Tracker, run_params
from marble_core.types import MarbleError, Prompt
from paths import ROOT
from waiting import eventually


@pytest.fixture
def name(services: dict[str, str]) -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])  # another test may have named another server to MLflow


def start(name: str, **params: str) -> Tracker:
    return Tracker.start("tests", name, name, "train", params, {"for": "a test"})


def history(*metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Of steps 1, 2, ..., as the learner keeps it."""
    return [{"step": step, "time": time.time(), "metrics": m, "notes": []} for step, m in enumerate(metrics, 1)]


def points(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client().get_metric_history(tracker.mlflow_run_id, key)]


def test_every_step_is_found_with_all_its_metrics_that_are_finite(name: str) -> None:
    tracker = start(name, seed="0")
    tracker.log_history(
        history(
            *({"reward/ocr/mean": s / 10, "alpha/ocr": math.inf, "alpha/x": math.nan, "odd*name": 1.0} for s in range(1, 6))
        )
    )
    tracker.end()
    run = client().get_run(tracker.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == name
    assert run.data.tags[RUN_ID_TAG] == name and run.data.tags["for"] == "a test" and run.data.params == {"seed": "0"}
    assert points(tracker, "reward/ocr/mean") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)]
    assert run.data.metrics.keys() == {"skipped", "reward/ocr/mean", "odd_name"}, "no NaN, beside which the page may not open"
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


def test_a_pipeline_is_one_line_that_has_everything_and_its_stages_lie_below_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that is started again goes on in its own run, and the curves of all stages are in the pipeline's."""
    monkeypatch.setenv("MARBLE_IMAGE", "registry/marble-train@sha256:12")
    killed = start(name)
    killed.log_metrics({"reward/ocr/mean": 0.5}, 1)
    killed.end("KILLED")
    again = start(name)
    again.end("RUNNING")
    Tracker.start("tests", name, name, "evaluate").end("FINISHED")
    found = client().search_runs([again.experiment_id], f"tags.`mlflow.parentRunId` = '{again.mlflow_run_id}'")
    assert {run.info.run_name: run.info.status for run in found} == {"train": "FINISHED", "evaluate": "FINISHED"}
    assert all(run.data.tags["marble.image"].endswith("@sha256:12") and not run.data.metrics for run in found)
    (pipeline,) = client().search_runs([again.experiment_id], f"tags.`marble.run_id` = '{name}'")
    assert pipeline.info.status == "FINISHED" and pipeline.data.metrics == {"reward/ocr/mean": 0.5}


def test_the_load_of_the_machine_is_the_stages_and_a_server_that_is_gone_does_not_hold_up_its_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = start(name)
    tracker.watch_machine()
    assert eventually(lambda: "system/cpu_utilization_percentage" in client().get_run(tracker.stage_run_id).data.metrics)
    assert not client().get_run(tracker.mlflow_run_id).data.metrics
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker._client = MlflowClient("http://127.0.0.1:9")
    begin = time.monotonic()
    tracker.end("KILLED", 3.0)
    assert time.monotonic() - begin < 60, "MLflow's own defaults wait for four minutes"


def test_prompt_sets_are_datasets_that_equal_prompts_give_the_same_name(name: str) -> None:
    prompts = [Prompt("a cat", "general"), Prompt("a dog", "general"), Prompt('"A"', "ocr", {"text": "A"})]
    place = {"general": "https://user:secret@example.org/p.txt?signature=secret", "ocr": "s3://bucket/ocr.txt"}
    digests = []
    for own in (prompts, list(prompts), prompts[:2]):
        tracker = start(f"{name}-{len(digests)}")
        tracker.log_inputs(datasets({"train": own, "evaluation": prompts[1:]}, {"train": place, "evaluation": {}}))
        tracker.end()
        assert tracker.failures == 0
        inputs = {i.tags[0].value: i.dataset for i in client().get_run(tracker.mlflow_run_id).inputs.dataset_inputs}
        digests.append(inputs["train"].digest)
    assert digests[0] == digests[1] != digests[2]
    assert json.loads(inputs["train"].source) == {"general": "https://example.org/p.txt", "ocr": "s3://bucket/ocr.txt"}
    assert json.loads(inputs["evaluation"].profile) == {"prompts": 2, "general": 1, "ocr": 1}


def test_a_run_says_what_code_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    assert code_tags().get("mlflow.source.git.commit", "").startswith(checkout.stdout.strip())
    monkeypatch.setenv("MARBLE_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("MARBLE_PIPELINE_VERSION", "nightly-7")
    tags = code_tags()
    assert tags["mlflow.source.git.commit"] == "c0ffee" and tags["marble.pipeline_version"] == "nightly-7"


def test_files_and_pictures_are_stored_in_s3_by_the_server(name: str, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "report.html").write_text("<p>")
    tracker = start(name)
    tracker.log_artifact(tmp_path / "pages", "all")
    tracker.log_artifact(tmp_path / "pages" / "report.html")
    tracker.log_image(np.zeros((8, 8, 3), np.uint8), "samples", 3)
    tracker.end()
    assert tracker.failures == 0
    assert {a.path for a in client().list_artifacts(tracker.mlflow_run_id)} == {"all", "images", "report.html"}
    assert any(key.endswith(f"{tracker.mlflow_run_id}/artifacts/all/report.html") for key in S3("mlflow").keys("artifacts"))


def test_images_that_are_logged_at_once_all_arrive_those_of_step_0_too(name: str) -> None:
    tracker = start(name)
    for step in range(8):
        tracker.log_image(np.zeros((8, 8, 3), np.uint8), "samples", step)
    tracker.end()
    kept = [a.path for a in client().list_artifacts(tracker.mlflow_run_id, "images") if a.path.endswith(".png")]
    assert tracker.failures == 0
    assert {int(found[1]) for path in kept if (found := re.search(r"step\D(\d+)\D", path))} == set(range(8)), kept


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


class Counting:
    """An MLflow client that counts the requests for metrics, and knows the threads they come from."""

    def __init__(self, client: MlflowClient) -> None:
        self.client, self.sizes, self.threads = client, list[int](), set[int]()

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.client, attribute)

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self.sizes.append(len(metrics))
        self.threads.add(threading.get_ident())
        self.client.log_batch(run_id, metrics)


def test_a_step_of_seventy_metrics_is_one_request_and_the_training_waits_for_none(name: str) -> None:
    """A step of the demo takes some ten seconds and gives about seventy metrics: 1 % of it would be 0.1 s."""
    tracker = start(name)
    tracker._client = counting = Counting(tracker._client)  # type: ignore[assignment]
    lines = history(*({f"reward/r{k}/mean": step + k for k in range(70)} for step in range(20)))
    took = []
    for done in range(1, 21):
        begin = time.thread_time()  # of this thread alone, whatever else the machine does
        tracker.log_history(lines[:done])
        took.append(time.thread_time() - begin)
        assert tracker.flush(30) == 0
    assert next(iter(client().get_run(tracker.mlflow_run_id).data.metrics)) == "reward/r0/mean", (
        "which MLflow's compare view shows"
    )
    assert counting.sizes == [71] * 20 and median(took) < 0.1 and threading.get_ident() not in counting.threads
    tracker.end()


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
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(name)
    there, lines = tracker._client, history(*({"loss": float(step)} for step in range(1, 21)))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker._client = gone = Counting(MlflowClient("http://someone:hunter2@127.0.0.1:9"))  # type: ignore[assignment]
    for done in range(1, 21):
        tracker.log_history(lines[:done])
    tracker.log_artifact(tmp_path)
    assert tracker.flush(0.1) == 20 and tracker.failures > 0 and threading.get_ident() not in gone.threads
    said = [record.getMessage() for record in caplog.records if record.name.startswith("marble_core")]
    assert {line.partition(":")[0] for line in said} == {
        f"MLflow did not take the {what}" for what in ("metrics", f"artifact {tmp_path.name}")
    }
    assert "hunter2" not in " ".join(said), "the login of the address that the library's error quotes"
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
