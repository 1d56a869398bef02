"""A train stage in its pod: what ends its work is tried again within the pod, to the same bits; a refusal is not."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from builders import prepared_run
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.runtime.again import Again
from marble_core.runtime.environment import AGAIN
from marble_core.tracking.run_tree import STAGE_TAG
from paths import TESTS
from waiting import eventually

STAGE = "import sys; from pathlib import Path; from marble_core import stages; stages.train(*map(Path, sys.argv[1:]))"
PARENT = """
import sys
from marble_core.runtime.again import Again, keep_at_it
keep_at_it("train", sys.argv[1:], Again.wanted(), lambda: "")
"""
AT_ONCE = {"retries": 4, "seconds": 0, "factor": 2, "longest": 600}


def pod(prepared: Path, dies: list[Any], script: str = STAGE, **again: float) -> subprocess.Popen[str]:
    """The stage as the only thing in its pod, whose work ends as ``dies`` says (tests/dying)."""
    path = os.pathsep.join([str(TESTS / "dying"), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "DIES": json.dumps(dies), AGAIN: json.dumps(AT_ONCE | again)}
    command = [sys.executable, "-c", script, str(prepared), str(prepared.parent / "adapter")]
    return subprocess.Popen(
        command, cwd=prepared.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def content(file: Path) -> tuple[Any, bytes]:
    """A safetensors file's header, whose keys have another order in each process, and the bits of its tensors."""
    whole = file.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:begin]), whole[begin:]


def trained(directory: Path, dies: list[Any]) -> tuple[tuple[Any, bytes], str, str]:
    """The adapter, what the pod said, and the run's name."""
    overrides = ("train.steps=4", "train.checkpoint_every=1", "train.processes=1", "storage.max_unsaved_minutes=0.05")
    prepared, run_id = prepared_run(directory, *overrides)
    process = pod(prepared, dies)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    return content(directory / "adapter" / ADAPTER_FILE), said, run_id


@pytest.mark.deep  # six processes that load torch and the model: two minutes
def test_a_training_killed_by_memory_by_signals_and_by_a_lost_s3_goes_on_by_itself_to_the_same_bits(
    services: dict[str, str], tmp_path: Path
) -> None:
    whole, log, _ = trained(tmp_path / "undisturbed", [])
    assert all(line.startswith("train ") for line in log.splitlines()) and "train 4/4  clipscore" in log, (
        "nothing of third parties"
    )
    dies = [["memory", 2], ["SIGKILL", 2], ["SIGSEGV", 3], ["S3", 4]]
    adapter, said, run_id = trained(tmp_path / "killed", dies)
    assert adapter == whole
    told = [line for line in said.splitlines() if line.startswith("train: ") and "Attempt" in line]
    expected = [
        r"train: RuntimeError: .*allocate memory.* Attempt 2 of 5 in 0 s\.",
        r"train: The work was ended by SIGKILL\. Attempt 3 of 5 in 0 s\.",
        r"train: The work was ended by SIGSEGV\. Attempt 4 of 5 in 0 s\.",
        r"train: S3 has taken no checkpoint for .*; the state after step 4 is saved as .* Attempt 5 of 5 in 0 s\.",
    ]
    assert len(told) == 4 and all(re.fullmatch(pattern, line) for pattern, line in zip(expected, told, strict=True)), told
    client = MlflowClient()
    experiment = client.get_experiment_by_name("marble")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`marble.run_id` = '{run_id}'")
    (stage,) = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`{STAGE_TAG}` = 'train'"
    )
    assert stage.data.tags["marble.attempt"].startswith("5: S3 has taken no checkpoint for ")


@pytest.mark.parametrize(
    ("dies", "retries", "says", "attempts"),
    [
        (["RuntimeError"] * 9, 4, "It did so 3 times and got no further", 3),
        (["Outage", "SIGABRT"], 1, "train was tried 2 times", 2),
        (["SIGBUS", "MarbleError"], 4, "It ends at step 0.", 2),
    ],
)
def test_a_refusal_is_not_tried_again_and_what_gets_no_further_is_given_up(
    tmp_path: Path, dies: list[str], retries: int, says: str, attempts: int
) -> None:
    process = pod(tmp_path / "prepared", [[how, 0] for how in dies], PARENT, retries=retries)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and says in said.splitlines()[-1], said
    assert said.count("Attempt") == attempts - 1


def test_a_stage_that_is_told_to_end_lets_its_work_end_and_does_not_begin_again(tmp_path: Path) -> None:
    process = pod(tmp_path / "prepared", [["RuntimeError", 0]] * 9, PARENT, seconds=600.0)
    assert process.stdout
    assert eventually(lambda: "Attempt 2 of 5 in 600 s" in (process.stdout.readline() if process.stdout else ""), 200)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_the_wait_before_another_attempt_doubles_up_to_its_limit() -> None:
    assert [Again(9, 30, 2, 600).pause(n) for n in range(1, 8)] == [30, 60, 120, 240, 480, 600, 600]
