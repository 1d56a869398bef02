"""GPU hours on the command line: refused before anything is sent, told at submit, shown of runs; and a schedule's runs in one list."""

import re
from pathlib import Path

import pytest

from cluster_commands import Marble
from commands import one_sentence, run_marble
from marble_core.runtime.environment import KFP_RUN
from marble_core.tracking.gpu_hours import ESTIMATED, SPENT
from marble_core.tracking.kubeflow_page import kubeflow_tags
from marble_core.tracking.tracker import Tracker
from marble_kubeflow.pipelines.marble import compile_to
from marble_kubeflow.pipelines.settings import read_settings
from stub_kfp import StubKfp

EIGHT = ("--preset", "sd35-medium-8gpu", "--param", "gpus=8", "--param", "evaluation_gpus=1")
SCHEDULE = ("schedule", "create", "nightly", "--cron", "0 3 * * *")


@pytest.mark.parametrize("order", [("submit",), SCHEDULE], ids=["submit", "schedule"])
def test_a_run_above_max_gpu_hours_is_refused_before_anything_is_sent(
    server: StubKfp, marble: Marble, order: tuple[str, ...]
) -> None:
    one_sentence(
        marble(*order, *EIGHT, "--max-gpu-hours", "3", code=2).error, "GPU hours", "--max-gpu-hours", "is 3", "raise the limit"
    )
    assert server.calls == []
    said = marble(*order, *EIGHT, "--max-gpu-hours", "1e5")
    assert re.search(r"[\d.e+]+ to [\d.e+]+ GPU hours, estimated .*: 8 GPUs to train and 1 to evaluate", said)
    (sent,) = server.posted("recurringruns" if order == SCHEDULE else "runs")
    assert sent["runtime_config"]["parameters"]["config"] == '["hardware.max_gpu_hours=100000.0"]', "the run knows its limit"


def test_a_schedule_cannot_be_changed_to_one_above_its_limit(server: StubKfp, marble: Marble) -> None:
    marble(*SCHEDULE, *EIGHT, "--param", "steps=1", "--max-gpu-hours", "40")
    one_sentence(marble("schedule", "update", "nightly", "--param", "steps=3000", code=2).error, "GPU hours", "is 40")
    assert len(server.posted("recurringruns")) == 1


def test_a_run_on_this_machine_above_its_limit_is_refused_before_a_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_marble("run", "--preset", "sd35-medium-8gpu", "--max-gpu-hours", "3", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    one_sentence(said.err, "GPU hours", "is 3")
    assert said.out == "" and list(tmp_path.iterdir()) == []


def test_submit_prints_the_pages_of_the_run_and_no_gpu_hours_where_there_are_no_gpus(
    server: StubKfp, marble: Marble, tmp_path: Path
) -> None:
    said = marble("submit", "--run-id", "plain", "--max-gpu-hours", "0")
    (run,) = server.tables["runs"]
    assert f"Kubeflow: {server.url}/#/runs/details/{run}" in said.splitlines() and "GPU hours" not in said
    (tmp_path / "settings.yaml").write_text(
        'pages: {kubeflow: "https://kubeflow.example/_/pipeline/?ns=team", mlflow: "https://mlflow.example"}'
    )
    compile_to(tmp_path / "ours.yaml", read_settings(tmp_path / "settings.yaml"))
    said = marble("submit", "ours.yaml", "--run-id", "ours")
    run = list(server.tables["runs"])[-1]
    assert said.splitlines()[1:] == [
        f"Kubeflow: https://kubeflow.example/_/pipeline/?ns=team#/runs/details/{run}",
        "MLflow: https://mlflow.example (tag marble.run_id = ours)",
    ]
    pages = marble("submit", "ours.yaml", "--run-id", "json", "--json").json["pages"]
    assert pages["MLflow"] == "https://mlflow.example" and pages["Kubeflow"].startswith("https://kubeflow.example/")


def ended(patch: pytest.MonkeyPatch, server: StubKfp, run: str, schedule: str, state: str, **metrics: float) -> None:
    """A run that a schedule has started, and what its stages told MLflow."""
    created = f"2026-01-{len(server.tables['runs']) + 10}T03:00:00+00:00"
    server.tables["runs"][run] = {
        "run_id": run, "display_name": run, "state": state, "created_at": created, "recurring_run_id": schedule
    }  # fmt: skip
    patch.setenv(KFP_RUN, run)
    tracker = Tracker.start("marble", run, run, "register", tags=kubeflow_tags())
    if metrics:
        tracker.set_tags({"marble.decision": "promoted" if metrics["evaluation/mean_gain"] > 0.1 else "refused: no gain"})
        for name, value in metrics.items():
            tracker.log_metrics({name: value})
    tracker.end("FINISHED" if metrics else "FAILED")


def test_a_schedules_runs_are_one_list_also_those_from_before_it_was_changed(
    server: StubKfp, marble: Marble, services: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    marble(*SCHEDULE)
    marble("schedule", "create", "weekly", "--cron", "0 3 * * 1")
    ids = {each["display_name"]: name for name, each in server.tables["recurring"].items()}
    ended(monkeypatch, server, "dawn-1", ids["nightly"], "SUCCEEDED", **{"evaluation/mean_gain": 0.137, ESTIMATED: 12, SPENT: 9.6})  # fmt: skip
    client = MlflowClient()
    client.create_registered_model("dawns")
    (made,) = client.search_runs(
        [each.experiment_id for each in client.search_experiments()], "tags.`marble.run_id` = 'dawn-1'"
    )
    client.create_model_version("dawns", "s3://marble/none", made.info.run_id)
    marble("schedule", "update", "nightly", "--cron", "0 5 * * *")
    marble("schedule", "update", "nightly", "--param", "steps=80")
    (changed,) = (name for name, each in server.tables["recurring"].items() if each["display_name"] == "nightly")
    assert changed != ids["nightly"], "Kubeflow cannot change one"
    ended(monkeypatch, server, "dawn-2", changed, "SUCCEEDED", **{"evaluation/mean_gain": 0.01})
    ended(monkeypatch, server, "monday", ids["weekly"], "SUCCEEDED", **{"evaluation/mean_gain": 0.2})
    ended(monkeypatch, server, "dawn-3", changed, "FAILED")
    cells = [re.split(r" *│ *", line)[1:-1] for line in marble("schedule", "runs", "nightly").splitlines() if "dawn-" in line]
    assert cells == [
        ["2026-01-13 03:00", "dawn-3", "FAILED", "", "", "", ""],
        ["2026-01-11 03:00", "dawn-2", "SUCCEEDED", "refused: no gain", "+0.010", "", ""],
        ["2026-01-10 03:00", "dawn-1", "SUCCEEDED", "promoted", "+0.137", "1", "9.6 of 12"],
    ]
    found = marble("schedule", "runs", "nightly", "-n", "2", "--json").json
    assert [each["run_id"] for each in found] == ["dawn-3", "dawn-2"] and found[1]["gain"] == 0.01
    one_sentence(marble("schedule", "runs", "daily", code=2).error, "'daily'", "marble schedule list")
    rows = [re.split(r" *│ *", line)[1:-1] for line in marble("runs", "list").splitlines()]
    assert next(row for row in rows if row and row[0] == "dawn-1")[-2:] == ["9.6 of 12", "2026-01-10 03:00"]
    (first,) = (each for each in marble("runs", "list", "--json").json if each["run_id"] == "dawn-1")
    assert first["gpu_hours"] == {"estimated": 12, "spent": 9.6}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    said = marble("schedule", "runs", "nightly")
    one_sentence(said.error, "MLFLOW_TRACKING_URI", "decisions")
    assert "dawn-1" in said and "GPU hours" not in marble("runs", "list")
