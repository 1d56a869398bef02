"""The command line as a user meets it: what it prints, its exit codes, and what it leaves behind.

The stages that need a model are stood in for by tests/stand_ins; the runner, the servers, prepare and register are real.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from mlflow import MlflowClient

from command_lines import all_command_lines
from commands import assert_one_sentence, environment, marble_process, one_sentence, run_marble
from marble_core import cli
from marble_core.cli.examples import EXAMPLES
from marble_core.cli.options import REFUSED
from marble_core.config.loading import load_config, presets
from marble_core.services.local import addresses
from marble_core.services.mlflow_server import MLflow
from marble_core.tracking.run_tree import RUN_ID_TAG
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.local import remove_left_by_killed
from paths import ROOT
from waiting import eventually, is_alive

SMALL = ("--set", "data.train_size=30", "--set", "data.evaluation_size=6")


def test_help_answers_without_a_heavy_import() -> None:
    heavy = {"torch", "kfp", "mlflow", "boto3", "diffusers", "transformers", "pydantic", "cvxpy"}
    script = f"import sys, marble_core.cli; print(*({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_an_unknown_key_is_one_sentence_with_the_nearest_key_and_exit_code_2(tmp_path: Path) -> None:
    done = marble_process(tmp_path, "run", "--set", "train.stpes=40")
    assert_one_sentence(done, "Unknown key 'train.stpes'", "did you mean 'steps'")
    assert list(tmp_path.iterdir()) == []  # before anything was started


def test_an_unknown_preset_and_a_run_id_that_is_a_path_are_one_sentence_each(tmp_path: Path) -> None:
    assert_one_sentence(marble_process(tmp_path, "check", "--preset", "dmeo"), "no preset 'dmeo'", "demo")
    assert_one_sentence(marble_process(tmp_path, "run", "--run-id", "../../etc"), "run id '../../etc'")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rollout.prompts={", "not valid YAML"),
        ("rewards=[{name: nope}]", "'nope' is not known"),
        ('balance={method: marble, wishes: ["dreams >= 1"]}', "'dreams'"),
        ("balance.floor={ocr: 2}", "it must be at most 1"),
        ("balance={method: equal, floor: {ocr: 0.2}}", "balance.floor would say nothing"),
        ("balance={gram: cross, halves: false}", "needs both"),
        ("optimizer.lr=.inf", "finite number"),
        ("storage.bucket=My_Bucket!!", "pattern"),
    ],
)
def test_a_value_that_cannot_be_right_is_one_sentence_before_anything_starts(tmp_path: Path, override: str, part: str) -> None:
    assert_one_sentence(marble_process(tmp_path, "check", "--set", override), part)


def test_a_malformed_prompt_line_is_one_sentence_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a sign", "text": "CAT"}\n{"prompt": 3}\n')
    done = marble_process(tmp_path, "check", "--set", f"data.train.ocr={tmp_path / 'bad.jsonl'}")
    assert_one_sentence(done, "bad.jsonl", "2")


def test_a_users_file_is_laid_over_the_preset_and_options_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: 7, checkpoint_every: 3}\nrewards: [{name: ocr}]\n")
    done = marble_process(tmp_path, "check", "--config", "mine.yaml", "--set", "train.steps=8", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "8 steps, a checkpoint every 3" in done.stdout and "rewards      ocr;" in done.stdout


def commands(group: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command there is, by its path."""
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        yield from commands(command, f"{path}{name} ") if hasattr(command, "commands") else [(path + name, command)]


@pytest.mark.parametrize(("path", "command"), commands(), ids=[path for path, _ in commands()])
def test_every_command_ends_its_help_with_examples_that_it_takes(path: str, command: Any) -> None:
    assert EXAMPLES[path] and all(example in command.epilog for example in EXAMPLES[path])
    for example in EXAMPLES[path]:
        words = shlex.split(example.partition("  #")[0])
        assert words[: 1 + len(path.split())] == ["marble", *path.split()]
        command.make_context(path, words[1 + len(path.split()) :])


def test_init_writes_a_configuration_that_changes_nothing_and_replaces_no_file(tmp_path: Path) -> None:
    for preset in presets():
        done = marble_process(tmp_path, "init", f"{preset}.yaml", "--preset", preset)
        assert done.returncode == 0, done.stderr
        assert load_config(preset, tmp_path / f"{preset}.yaml") == load_config(preset)
        written = yaml.safe_load((tmp_path / f"{preset}.yaml").read_text())
        assert written == load_config(preset).model_dump(mode="json"), "every key is there"
    assert_one_sentence(marble_process(tmp_path, "init", "demo.yaml"), "demo.yaml", "there already")


def test_an_estimate_asks_for_no_file_and_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    done = marble_process(
        tmp_path, "check", "--estimate", "--preset", "sd35-medium-1gpu-24g", "--set", "data.train.general=not-there.txt"
    )
    assert done.returncode == 0 and "the peak is" in done.stdout and "is valid" not in done.stdout, done.stderr
    done = marble_process(tmp_path, "check", "--estimate", "--preset", "sd35-medium-1gpu-24g", "--set", "model.offload=none")
    assert_one_sentence(done, "model.offload=scorers", "sd35-medium-1gpu-24g")
    assert done.stdout == ""


def test_compile_writes_the_pipeline(tmp_path: Path) -> None:
    done = marble_process(tmp_path, "compile", "--output", "out.yaml")
    assert done.returncode == 0 and (tmp_path / "out.yaml").read_bytes() == (ROOT / "pipelines" / "marble.yaml").read_bytes()


def test_ui_names_the_server_that_is_there_the_experiments_page_and_the_newest_report(
    services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name("of-the-ui")
    number = found.experiment_id if found else client.create_experiment("of-the-ui")
    for name, when in (("old", 1), ("new", 2)):
        report = tmp_path / ".marble/runs" / name / "report.html"
        report.parent.mkdir(parents=True)
        report.touch()
        os.utime(report, (when, when))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page: opened.append(page) is None)
    assert run_marble("ui", "--experiment", "of-the-ui", monkeypatch=monkeypatch) == 0 and opened == []
    page = f"{services['MLFLOW_TRACKING_URI']}/#/experiments/{number}"
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"Runs: {page}",
        f"Newest report: {(tmp_path / '.marble/runs/new/report.html').as_uri()}",
    ]
    assert run_marble("ui", "--experiment", "of-the-ui", "--open", monkeypatch=monkeypatch) == 0 and opened == [page]


def test_a_port_that_another_program_has_is_one_sentence_before_mlflow_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        where = other.getsockname()
        with pytest.raises(MarbleError) as caught:
            MLflow(tmp_path, listen=where).start()
    one_sentence(str(caught.value), f"127.0.0.1, port {where[1]}", "Address already in use", "--port")


def test_a_host_that_is_no_address_of_this_machine_is_one_sentence_before_mlflow_starts(tmp_path: Path) -> None:
    with pytest.raises(MarbleError) as caught:
        MLflow(tmp_path, listen=("256.0.0.1", 0)).start()
    one_sentence(str(caught.value), "256.0.0.1", "--host")


def test_a_better_model_is_registered_and_the_run_ends_with_the_table_and_the_report(
    services: dict[str, str], tmp_path: Path
) -> None:
    secret = f"s3cr3t{uuid.uuid4().hex}"
    (tmp_path / "mine.yaml").write_text(f"storage: {{experiment: {secret}}}\n")
    with all_command_lines() as seen:
        done = marble_process(tmp_path, "run", "--run-id", "first", "--config", "mine.yaml", *SMALL, stand_in="better")
    assert done.returncode == 0, done.stdout + done.stderr
    assert secret in next((tmp_path / ".marble").rglob("config.json")).read_text(), "which the stages have all the same"
    assert any("executor_main" in line and str(tmp_path) in line for line in seen), "the stages were seen"
    assert [line for line in seen if secret in line] == [] and not list((tmp_path / ".marble").rglob("overrides.json"))
    said = done.stdout
    assert "train 2/2  ocr 0.7 (1.00)  worst cosine +0.250" in said  # a step on one line
    assert re.search(r"ocr +96 +0\.500 +0\.700 +\+0\.200 \(\+0\.150 to \+0\.250\) +60%", said), said
    assert "Gate: passed" in said and "Registered: version 7 of marble as champion" in said
    report = tmp_path / ".marble" / "runs" / "first" / "report.html"
    assert report.read_text().startswith("<!doctype html>") and str(report) in said
    assert "\nBetter than the base by 0.20 standard deviations on average, with no catch found: promoted.\n" in said
    assert "marble run --run-id first --set train.steps=64    # twice" in said and "Reused" not in said
    secrets = [services["AWS_SECRET_ACCESS_KEY"], services["AWS_ACCESS_KEY_ID"]]
    written = b"".join(path.read_bytes() for path in (tmp_path / ".marble").rglob("*") if path.is_file())
    assert not any(secret.encode() in written or secret in said + done.stderr for secret in secrets)


def test_a_worse_model_is_refused_with_the_reason_and_an_exit_code_of_its_own(services: dict[str, str], tmp_path: Path) -> None:
    killed = tmp_path / ".marble" / "runs" / "killed"
    (killed / "tmp").mkdir(parents=True)
    (killed / "tmp" / "told.json").write_text("the settings of a run that was killed")
    done = marble_process(
        tmp_path, "run", "--run-id", "second", *SMALL, "--set", "storage.experiment=refusals", stand_in="worse"
    )
    assert done.returncode == REFUSED == 5, done.stdout + done.stderr
    assert killed.exists() and not (killed / "tmp").exists()
    assert "Gate: refused" in done.stdout and "ocr is worse" in done.stdout and "Registered" not in done.stdout
    client = MlflowClient(services["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("refusals")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{RUN_ID_TAG}` = 'second'")
    assert "ocr is worse" in run.data.tags["marble.reasons"]


def test_a_stage_that_names_its_error_ends_the_command_with_that_sentence(services: dict[str, str], tmp_path: Path) -> None:
    done = marble_process(tmp_path, "run", *SMALL, stand_in="mendable")
    assert_one_sentence(done, "The reward 'ocr' needs a wheel: pip install it.")


def test_a_bucket_that_is_not_there_is_one_sentence_from_the_first_stage(services: dict[str, str], tmp_path: Path) -> None:
    done = marble_process(tmp_path, "run", *SMALL, "--set", "storage.bucket=not-there")
    assert_one_sentence(done, "no S3 bucket 'not-there'", services["AWS_ENDPOINT_URL"])


def test_a_stage_that_breaks_fails_the_command_with_its_traceback_and_the_logs_path(
    services: dict[str, str], tmp_path: Path
) -> None:
    done = marble_process(tmp_path, "run", "--run-id", "broken", *SMALL, stand_in="broken")
    assert done.returncode == 1
    assert "RuntimeError: the stage broke here" in done.stderr
    log = tmp_path / ".marble" / "runs" / "broken" / "pipeline.log"
    assert str(log) in done.stderr and "the stage broke here" in log.read_text()
    assert "evaluate" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "signal_number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.deep), signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.deep)],
)
def test_a_command_that_is_stopped_lets_its_stage_save_and_leaves_no_stage_and_no_server(
    tmp_path: Path,
    servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    signal_number: signal.Signals,
) -> None:
    for name in (name for name in servers if name.startswith("MLFLOW_")):
        monkeypatch.setenv(name, servers[name])  # S3 is started, MLflow is not
    command = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", "stopped", *SMALL]
    with (tmp_path / "output").open("wb") as output:
        parent = subprocess.Popen(command, cwd=tmp_path, env=environment("hangs"), stdout=output, stderr=output)
    request.addfinalizer(parent.kill)
    events = tmp_path / ".marble" / "runs" / "stopped" / "progress.jsonl"
    assert eventually(lambda: events.exists() and '"note": "pid' in events.read_text(), 600), (tmp_path / "output").read_text()
    notes = [json.loads(line).get("note", "") for line in events.read_text().splitlines()]
    stage = int(next(note for note in notes if note.startswith("pid ")).split()[1])
    assert is_alive(stage) and addresses(tmp_path / ".marble")
    parent.send_signal(signal_number)
    assert parent.wait(90) != 0
    assert eventually(lambda: not is_alive(stage))
    assert eventually(lambda: addresses(tmp_path / ".marble") == {})  # nobody holds the lock
    if signal_number != signal.SIGKILL:  # which leaves nobody to keep the server for the stage
        assert '"note": "saved"' in events.read_text()
    else:
        left = tmp_path / ".marble" / "runs" / "stopped" / "tmp"
        assert (left / "told.json").exists()
        remove_left_by_killed(tmp_path / ".marble" / "runs")
        assert eventually(lambda: remove_left_by_killed(tmp_path / ".marble" / "runs") or not left.exists(), 15)
