"""GPU hours that a run has spent, in a real MLflow: over stages, attempts and kills."""

import os
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from builders import REWARDS, TINY
from marble_core import stages
from marble_core.runtime.again import Again, keep_at_it
from marble_core.runtime.environment import GPUS_SINCE, KFP_RUN
from marble_core.tracking.gpu_hours import ESTIMATED, SPENT, gpu_hours_told
from marble_core.tracking.tracker import Tracker
from marble_core.training import launch
from marble_core.types import MarbleError
from waiting import eventually


def start(name: str, stage: str) -> Tracker:
    return Tracker.start("marble", name, name, stage)


def spent(run: str) -> float:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(run).data.metrics.get(SPENT, -1.0)


def test_seconds_times_gpus_are_summed_over_attempts_and_stages(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"hours-{uuid.uuid4().hex[:8]}"
    for stage, gpus, hours in (("train", 8, 0.5), ("train", 8, 0.25), ("evaluate", 1, 0.5)):
        monkeypatch.setenv(GPUS_SINCE, str(time.time() - 3600 * hours))
        tracker = start(name, stage)
        with gpu_hours_told(tracker, gpus):
            pass
        tracker.end("RUNNING")
    assert spent(tracker.mlflow_run_id) == pytest.approx(8 * 0.5 + 8 * 0.25 + 0.5, abs=0.1)


def test_a_stage_without_gpus_writes_nothing_and_one_that_is_killed_has_told_what_it_took_so_far(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"hours-{uuid.uuid4().hex[:8]}"
    tracker = start(name, "train")
    with gpu_hours_told(tracker, 0):
        pass
    assert tracker.flush(20) == 0 and spent(tracker.mlflow_run_id) == -1
    monkeypatch.setenv(GPUS_SINCE, str(time.time() - 1800))
    with gpu_hours_told(tracker, 4, every=0.05):
        assert eventually(lambda: spent(tracker.mlflow_run_id) >= 2), "before its end, which a kill takes away"
        first = spent(tracker.mlflow_run_id)
        assert eventually(lambda: spent(tracker.mlflow_run_id) > first), "and MLflow shows the newest"
    tracker.end()


def test_the_pause_before_another_attempt_counts_for_the_pod_holds_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is a script that writes down from when it counts, and when it is; it fails once."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "${GPUS_SINCE} $(date +%s.%N)" >> {tmp_path}/seen\n[ "$(wc -l < {tmp_path}/seen)" = 2 ]\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    keep_at_it("train", [], Again(2, seconds=1.0), lambda: "")
    (since, first), (again, second) = (
        [float(x) for x in line.split()] for line in (tmp_path / "seen").read_text().splitlines()
    )
    assert since <= first + 0.01 and first - 0.01 <= again < second - 0.9


def test_prepare_refuses_what_is_above_the_limit_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run that Kubeflow's page has started knows its limit too."""
    monkeypatch.setenv(KFP_RUN, "kfp")
    order = [*TINY, REWARDS, "hardware.tflops=100", "hardware.max_gpu_hours=1e-9"]
    with pytest.raises(MarbleError, match=r"GPU hours, and hardware.max_gpu_hours .* is 1e-09"):
        stages.prepare("demo", order, "limited", tmp_path / "prepared", tmp_path / "page.html", {"gpus": "2"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.deep  # a training and an evaluation: 50 s where the cores are busy
def test_the_stages_tell_what_was_estimated_and_spent(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no GPU; torch says that the pods have two and one."""
    monkeypatch.setenv(KFP_RUN, f"kfp-{uuid.uuid4().hex[:8]}")
    name, form = f"hours-{uuid.uuid4().hex[:8]}", {"gpus": "2", "evaluation_gpus": "1"}
    prepared, adapter, page = tmp_path / "prepared", tmp_path / "adapter", tmp_path / "page.html"
    order = [*TINY, REWARDS, "hardware.tflops=100"]
    stages.prepare("demo", order, name, prepared, page, form)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("marble_core.training.launch._gpus", lambda: 0)  # else two processes would begin
    monkeypatch.setattr("marble_core.training.launch.processes_wanted", lambda _: 1)
    begun = time.monotonic()
    stages.train(prepared, adapter)
    trained = time.monotonic() - begun
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    places = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(places, f"tags.`marble.run_id` = '{name}'")
    first = run.data.metrics[SPENT]
    assert 0 < run.data.metrics[ESTIMATED] < 1
    assert 0.5 * 2 * trained / 3600 < first <= 2 * trained / 3600
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # which evaluates in this process
    begun = time.monotonic()
    stages.evaluate(prepared, adapter, tmp_path / "evaluation", page)
    evaluated = time.monotonic() - begun
    assert 0.3 * evaluated / 3600 < spent(run.info.run_id) - first <= evaluated / 3600


def test_a_process_of_a_trainjob_counts_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from the stage's, whose pod waits for the job in a queue."""
    monkeypatch.setenv(GPUS_SINCE, "")
    monkeypatch.delenv(GPUS_SINCE)

    def ends() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "end_with_the_parent", ends)
    before = time.time()
    with pytest.raises(KeyboardInterrupt):
        launch.main("s3://bucket/prepared", "s3://bucket/adapter")
    assert before <= float(os.environ[GPUS_SINCE]) <= time.time()
