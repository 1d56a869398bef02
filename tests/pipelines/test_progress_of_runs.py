"""marble runs says how far a run is: what Kubeflow's stub answers of its stages, and a real MLflow of its steps and attempts."""

import re
import time
from typing import Any

import mlflow
import pytest

from cluster_commands import Marble
from commands import one_sentence
from marble_core.runtime.environment import ATTEMPT, KFP_RUN
from marble_core.tracking.kubeflow_page import kubeflow_tags
from marble_core.tracking.tracker import Tracker
from stub_kfp import StubKfp

WHY = "The work was ended by SIGSEGV."


def ordered(server: StubKfp, marble: Marble, name: str, *stages: tuple[str, str]) -> dict[str, Any]:
    """A run that goes on in Kubeflow, with these nodes."""
    marble("submit", "--run-id", name)
    run = next(each for each in server.tables["runs"].values() if each["display_name"] == name)
    tasks = [{"display_name": node, "state": state, "start_time": "2026-01-01T03:00:00Z"} for node, state in stages]
    run |= {"state": "RUNNING", "run_details": {"task_details": tasks}}
    return run


def trained(patch: pytest.MonkeyPatch, run: dict[str, Any], steps: int, gap: float, of: int = 300) -> None:
    """What prepare and the second attempt at train have told MLflow after so many steps, of ``gap`` seconds each."""
    patch.setenv(KFP_RUN, run["run_id"])
    name = run["display_name"]
    Tracker.start("marble", name, name, "prepare", {"train.steps": str(of)}, kubeflow_tags()).end("RUNNING")
    patch.setenv(ATTEMPT, f"2: {WHY}")
    tracker = Tracker.start("marble", name, name, "train")
    begun = time.time() - gap * steps
    tracker.log_history([{"step": n, "time": begun + gap * n, "metrics": {"skipped": 0.0}} for n in range(1, steps + 1)])
    assert tracker.flush(30) == 0


def test_a_training_is_shown_with_its_step_the_time_left_and_the_attempt(
    server: StubKfp, marble: Marble, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = ("prepare", "SUCCEEDED"), ("train", "RUNNING")
    run = ordered(server, marble, "far-one", *nodes)
    trained(monkeypatch, run, steps=12, gap=60)
    ordered(server, marble, "unknown-to-mlflow", *nodes)
    rows = [re.split(r" *│ *", line)[1:-1] for line in marble("runs", "list").splitlines() if "RUNNING" in line]
    assert rows[0][:6] == ["unknown-to-mlflow", "RUNNING", "train", "", "", ""]
    name, state, stage, step, left, attempt, created = rows[1]
    assert (name, state, stage, step, attempt) == ("far-one", "RUNNING", "train", "12/300", "2") and created.startswith(
        "2026-01-01"
    )
    assert left in ("287 min", "288 min")
    far = marble("runs", "list", "--json").json[-1]["progress"]
    assert 286.5 * 60 < far.pop("seconds_left") <= 288 * 60
    assert far == {"stage": "train", "step": 12, "steps": 300, "attempt": 2, "because": WHY, "waits": ""}
    said = marble("runs", "show", "far-one").splitlines()
    assert said[0] == "Run far-one is RUNNING in train"
    assert said[1].startswith("  train: step 12/300, 28") and said[1].endswith(
        f"min left, attempt 2, since the one before ended: {WHY}"
    )
    assert marble("runs", "show", "far-one", "--json").json["progress"]["step"] == 12


def test_the_stage_that_is_asked_for_is_kubeflows_and_a_run_that_has_ended_has_no_time_left(
    server: StubKfp, marble: Marble, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ordered(server, marble, "far-two", ("train", "SUCCEEDED"), ("evaluate", "PENDING"))
    trained(monkeypatch, run, steps=4, gap=1, of=4)
    far = marble("runs", "show", "far-two", "--json").json["progress"]
    assert far.pop("waits").startswith("The pod of evaluate has waited since 03:00 UTC") and far == {"stage": "evaluate"}
    assert "far-two: The pod of evaluate has waited since 03:00 UTC" in marble("runs", "list")
    run |= {"state": "SUCCEEDED", "run_details": {"task_details": [{"display_name": "train", "state": "SUCCEEDED"}]}}
    assert marble("runs", "show", "far-two").splitlines()[1].startswith("  train: step 4/4, attempt 2")


def test_without_mlflow_the_stage_is_still_shown_and_one_that_is_away_is_one_sentence(
    server: StubKfp, marble: Marble, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    ordered(server, marble, "far-three", ("train", "RUNNING"))
    assert marble("runs", "show", "far-three", "--json").json["progress"] == {"stage": "train", "waits": ""}
    mlflow.set_tracking_uri("http://127.0.0.1:9")  # and the variable with it
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = marble("runs", "list")
    one_sentence(said.error, "MLflow was not asked", "http://127.0.0.1:9")
    assert "train" in said
