"""A study's content stands on no command line: every user of the machine reads those."""

import uuid
from pathlib import Path

import pytest
from rich.console import Console

from command_lines import all_command_lines
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.local import run_study
from marble_kubeflow.pipelines.study import Plan


def test_no_process_of_a_study_has_its_content_on_its_command_line(services: dict[str, str], tmp_path: Path) -> None:
    secret = f"s3cr3t{uuid.uuid4().hex}"
    file = {"set": [f"storage.experiment={secret}", "train.stpes=1"], "arms": {"a": []}, "seeds": [0]}
    with (
        all_command_lines() as seen,
        pytest.raises(MarbleError, match=r"Unknown key 'train\.stpes'"),  # of a stage, which has read the study
    ):
        run_study(Plan("s", file, [("a", 0)]), tmp_path, Console(quiet=True), {})
    own = [line for line in seen if str(tmp_path) in line]
    assert any("executor_main" in line for line in own) and any("pipelines.local" in line for line in own)
    assert [line for line in own if secret in line or "stpes" in line] == []
    assert list(tmp_path.rglob("told.json")) + list(tmp_path.rglob("study.json")) == []
