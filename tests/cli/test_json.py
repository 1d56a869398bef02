"""--json wherever a script would read: standard output is one JSON document, and what a person reads goes to standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import run_marble


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> Any:
        assert run_marble(*arguments, "--json", monkeypatch=monkeypatch) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def test_check_says_what_a_step_takes_in_bytes_and_hours(answer: Any) -> None:
    said = answer("check", "--estimate", "--preset", "sd35-medium-1gpu-24g", "--set", "train.steps=7")
    assert said["steps"] == 7 and said["valid"] is None
    assert said["memory"]["peak_bytes"] == max(said["memory"]["bytes"].values()) > 1e10
    assert 0 < said["hours"]["low"] < said["hours"]["high"]


def test_check_counts_the_prompts_of_a_configuration_that_is_valid(answer: Any) -> None:
    said = answer("check", "--set", "data.train_size=30", "--set", "data.evaluation_size=6")
    assert said["valid"] is True and said["prompts"]["held_out"] == 18 and said["prompts"]["train"] > 0


def test_fetch_says_of_each_file_whether_it_is_here(answer: Any) -> None:
    said = answer("fetch", "--dry-run", "demo")
    assert {entry["where"] for entry in said} == {"here"} and "demo://sd3" in {entry["uri"] for entry in said}
