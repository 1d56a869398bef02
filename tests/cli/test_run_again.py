"""marble run --run-id RUN goes on with the run's own settings, and what a script reads of a run is JSON. Stages by tests/stand_ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import assert_one_sentence, marble_process
from marble_core.cli.options import REFUSED
from marble_core.cli.run_settings import FILE, RunSettings
from marble_core.types import MarbleError

SMALL = ("--set", "data.train_size=30", "--set", "data.evaluation_size=6")


def test_a_run_id_alone_goes_on_with_the_runs_own_settings_and_options_lie_over_them(
    services: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: 7}\nstorage: {experiment: again}\n")
    first = marble_process(tmp_path, "run", "--run-id", "mine", "--config", "mine.yaml", *SMALL, stand_in="worse")
    assert first.returncode == REFUSED, first.stdout + first.stderr
    (tmp_path / "mine.yaml").unlink()
    again = marble_process(tmp_path, "run", "--run-id", "mine", "--set", "train.samples_every=3", "--json", stand_in="worse")
    assert again.returncode == REFUSED, again.stdout + again.stderr
    assert "goes on with its own settings" in again.stderr and "7 steps" in again.stderr
    own = RunSettings.read(tmp_path / ".marble/runs/mine")
    assert own is not None and own.preset == "demo" and own.overrides[-1] == "train.samples_every=3"
    said = json.loads(again.stdout)
    assert said["run_id"] == "mine" and said["verdict"] == "worse" and said["promoted"] is False
    assert "ocr is worse" in said["reasons"][0] and Path(said["report"]).is_file()


def test_with_a_preset_the_command_is_the_whole_of_the_settings(tmp_path: Path) -> None:
    RunSettings("demo", ("train.steps=0",)).write(tmp_path / ".marble/runs/mine")
    assert_one_sentence(marble_process(tmp_path, "run", "--run-id", "mine"), "train.steps", "at least 1")
    done = marble_process(tmp_path, "run", "--run-id", "mine", "--preset", "demo", "--set", "train.stepz=1")
    assert_one_sentence(done, "train.stepz")


def test_settings_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(MarbleError, match=f"{FILE} cannot be read: delete it"):
        RunSettings.read(tmp_path)
    assert RunSettings.read(tmp_path / "none") is None
